"""A plugin of cil: what a package needs to add a strategy, its configuration and a stream."""

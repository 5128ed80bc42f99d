"""The command line: the only room that knows Hydra. One module for each command, imported when it is used."""

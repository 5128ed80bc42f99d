"""The kinds of run: one folder each, with all that is its own. Other packages bring further ones (``cil.kinds``)."""

"""Bridges to other toolboxes. Nothing of theirs is imported before it is asked for."""

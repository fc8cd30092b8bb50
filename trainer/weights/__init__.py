"""Weights of other programs: read, recognised by their names, and written."""

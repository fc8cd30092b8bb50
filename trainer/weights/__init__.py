"""Weights of other programs: reading, recognition by names, and writing."""

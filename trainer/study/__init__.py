"""Comparisons under equal conditions: a file names data sets, rows and measures, and every number is made once."""

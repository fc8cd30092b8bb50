"""Comparisons under equal conditions: a file lists data sets, rows and measures, and every number is computed once."""

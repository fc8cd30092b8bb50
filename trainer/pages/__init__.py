"""Runs, their results and their comparison as HTML pages: one file each, no script, nothing loaded from elsewhere."""

"""Shards -> checkpoints -> numbers."""

"""Protocols that turn a checkpoint into numbers."""

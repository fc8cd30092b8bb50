"""From shards to checkpoints and results."""

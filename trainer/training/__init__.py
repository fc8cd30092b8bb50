"""Training: from shards to a run with its log and checkpoints."""

from trainer.training.loop import train

__all__ = ["train"]

"""Losses, negatives, optimiser groups, the DeepSpeed engine and checkpoints (layer 2)."""

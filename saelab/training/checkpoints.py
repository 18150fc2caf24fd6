"""A training run on disk."""

CHECKPOINT = "checkpoint.safetensors"
"""Name of the one file in a trainer's folder."""

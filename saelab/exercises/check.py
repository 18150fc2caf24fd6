"""All checks by name, a room for each tutorial."""

from saelab.exercises.shrinkage import relative_reconstruction_bias

__all__ = ["relative_reconstruction_bias"]

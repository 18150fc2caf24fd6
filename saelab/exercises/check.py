"""All checks by name, a room for each tutorial."""

from saelab.exercises.shrinkage import relative_reconstruction_bias
from saelab.exercises.start_here import features_on, higher_price

__all__ = ["features_on", "higher_price", "relative_reconstruction_bias"]

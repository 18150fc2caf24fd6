"""All checks by name, a room for each tutorial."""

from saelab.exercises.shrinkage import best_code, biased_by, pooled_bias, relative_reconstruction_bias
from saelab.exercises.superposition import doubling_the_l1_penalty, expected_l0, interference, standard_encode

__all__ = [
    "best_code",
    "biased_by",
    "doubling_the_l1_penalty",
    "expected_l0",
    "interference",
    "pooled_bias",
    "relative_reconstruction_bias",
    "standard_encode",
]

"""All checks by name, a room for each tutorial."""

from saelab.exercises.capstone import capstone_conclusion, capstone_plan, capstone_results, fvu_at
from saelab.exercises.shrinkage import relative_reconstruction_bias
from saelab.exercises.start_here import features_on, higher_price

__all__ = [
    "capstone_conclusion",
    "capstone_plan",
    "capstone_results",
    "features_on",
    "fvu_at",
    "higher_price",
    "relative_reconstruction_bias",
]

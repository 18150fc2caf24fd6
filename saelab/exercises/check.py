"""All checks by name, a room for each tutorial."""

from saelab.exercises.gated import gated_codes, gated_loss, jumprelu_threshold, without_auxiliary
from saelab.exercises.rescale_and_shift import best_rescale, rescale_shift_codes, what_repair_changes
from saelab.exercises.shrinkage import relative_reconstruction_bias

__all__ = [
    "best_rescale",
    "gated_codes",
    "gated_loss",
    "jumprelu_threshold",
    "relative_reconstruction_bias",
    "rescale_shift_codes",
    "what_repair_changes",
    "without_auxiliary",
]

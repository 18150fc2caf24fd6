"""All checks by name; each tutorial has a module of its own."""

from saelab.exercises.capstone import capstone_conclusion, capstone_plan, capstone_results, fvu_at
from saelab.exercises.chance import paired_interval, right_control, small_error_nothing_found
from saelab.exercises.gated import gated_codes, gated_loss, jumprelu_threshold, without_auxiliary
from saelab.exercises.language_model import loss_recovered, mean_baseline, splice, top_texts
from saelab.exercises.probing import n_active, principal_components, probe, training_accuracy_on_codes
from saelab.exercises.rescale_and_shift import best_rescale, rescale_shift_codes, what_repair_changes
from saelab.exercises.shrinkage import best_code, biased_by, pooled_bias, relative_reconstruction_bias
from saelab.exercises.start_here import features_on, higher_price
from saelab.exercises.superposition import doubling_the_l1_penalty, expected_l0, interference, standard_encode

__all__ = [
    "best_code",
    "best_rescale",
    "biased_by",
    "capstone_conclusion",
    "capstone_plan",
    "capstone_results",
    "doubling_the_l1_penalty",
    "expected_l0",
    "features_on",
    "fvu_at",
    "gated_codes",
    "gated_loss",
    "higher_price",
    "interference",
    "jumprelu_threshold",
    "loss_recovered",
    "mean_baseline",
    "n_active",
    "paired_interval",
    "pooled_bias",
    "principal_components",
    "probe",
    "relative_reconstruction_bias",
    "rescale_shift_codes",
    "right_control",
    "small_error_nothing_found",
    "splice",
    "standard_encode",
    "top_texts",
    "training_accuracy_on_codes",
    "what_repair_changes",
    "without_auxiliary",
]

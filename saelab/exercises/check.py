"""All checks by name, a room for each tutorial."""

from saelab.exercises.language_model import loss_recovered, mean_baseline, splice, top_texts
from saelab.exercises.probing import n_active, principal_components, probe, training_accuracy_on_codes
from saelab.exercises.shrinkage import relative_reconstruction_bias

__all__ = [
    "loss_recovered",
    "mean_baseline",
    "n_active",
    "principal_components",
    "probe",
    "relative_reconstruction_bias",
    "splice",
    "top_texts",
    "training_accuracy_on_codes",
]

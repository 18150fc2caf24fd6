"""SAELab: train, measure and teach sparse autoencoders, the gated kind above all."""

from saelab.activations import ActivationStore, harvest, harvest_pooled
from saelab.autoencoders import ARCHITECTURES, GatedSAE, SAELoss, SparseAutoencoder, StandardSAE
from saelab.language_models import load_language_model, load_sentiment, load_text
from saelab.metrics import FVU, L0, FeatureDensity, RelativeReconstructionBias, SAEMetrics, evaluate
from saelab.probing import ProbeReport, probe, sentiment_activations
from saelab.training import Trainer, TrainingConfig, TrainingRecord

__version__ = "0.1.0"

__all__ = [
    "ARCHITECTURES",
    "FVU",
    "L0",
    "ActivationStore",
    "FeatureDensity",
    "GatedSAE",
    "ProbeReport",
    "RelativeReconstructionBias",
    "SAELoss",
    "SAEMetrics",
    "SparseAutoencoder",
    "StandardSAE",
    "Trainer",
    "TrainingConfig",
    "TrainingRecord",
    "evaluate",
    "harvest",
    "harvest_pooled",
    "load_language_model",
    "load_sentiment",
    "load_text",
    "probe",
    "sentiment_activations",
]

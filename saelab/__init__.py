"""SAELab: train, measure and teach sparse autoencoders, the gated kind above all."""

from saelab.activations import ActivationStore, harvest, harvest_pooled
from saelab.autoencoders import (
    ARCHITECTURES,
    GatedSAE,
    JumpReLUSAE,
    RescaleShiftSAE,
    SAELoss,
    SparseAutoencoder,
    StandardSAE,
    TrainedOn,
)
from saelab.features import FeatureReading, read_features
from saelab.interchange import SAEFileError, export, load, save
from saelab.language_models import load_language_model, load_sentiment, load_text
from saelab.metrics import (
    FVU,
    L0,
    L1,
    CosineSimilarity,
    DictionaryMatch,
    FeatureDensity,
    RelativeReconstructionBias,
    SAEMetrics,
    evaluate,
    feature_shrinkage,
    matched_cosine_similarity,
    relative_reconstruction_bias,
)
from saelab.probing import (
    LabelledSet,
    ProbeReport,
    compare_representations,
    effective_dimension,
    principal_components,
    probe,
    probe_weights,
    sentiment_activations,
    sentiment_set,
)
from saelab.resampling import resample_dead_features
from saelab.shards import StoreError
from saelab.splicing import LossRecovered, loss_recovered, spliced
from saelab.sweeps import sweep
from saelab.synthetic import SuperpositionData, superposition
from saelab.thresholds import threshold_curves
from saelab.training import NonFiniteLossError, Trainer, TrainingConfig, TrainingRecord

__version__ = "0.1.0"

__all__ = [
    "ARCHITECTURES",
    "FVU",
    "L0",
    "L1",
    "ActivationStore",
    "CosineSimilarity",
    "DictionaryMatch",
    "FeatureDensity",
    "FeatureReading",
    "GatedSAE",
    "JumpReLUSAE",
    "LabelledSet",
    "LossRecovered",
    "NonFiniteLossError",
    "ProbeReport",
    "RelativeReconstructionBias",
    "RescaleShiftSAE",
    "SAEFileError",
    "SAELoss",
    "SAEMetrics",
    "SparseAutoencoder",
    "StandardSAE",
    "StoreError",
    "SuperpositionData",
    "TrainedOn",
    "Trainer",
    "TrainingConfig",
    "TrainingRecord",
    "compare_representations",
    "effective_dimension",
    "evaluate",
    "export",
    "feature_shrinkage",
    "harvest",
    "harvest_pooled",
    "load",
    "load_language_model",
    "load_sentiment",
    "load_text",
    "loss_recovered",
    "matched_cosine_similarity",
    "principal_components",
    "probe",
    "probe_weights",
    "read_features",
    "relative_reconstruction_bias",
    "resample_dead_features",
    "save",
    "sentiment_activations",
    "sentiment_set",
    "spliced",
    "superposition",
    "sweep",
    "threshold_curves",
]

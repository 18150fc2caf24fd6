"""SAELab: train, measure and teach sparse autoencoders, the gated kind above all."""

from saelab.data.activations import ActivationStore, harvest, harvest_many, harvest_pooled, harvest_pooled_many
from saelab.data.labelled import LabelledActivations, LabelledSet, LabelledSplit, sentiment_set, sentiment_sets
from saelab.data.language_models import ModelNotFoundError, load_language_model, load_sentiment, load_text
from saelab.data.shards import StoreError
from saelab.data.synthetic import SuperpositionData, superposition
from saelab.evaluation.features import FeatureReading, read_features
from saelab.evaluation.metrics import (
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
from saelab.evaluation.probing import (
    ProbeReport,
    compare_representations,
    effective_dimension,
    pool_reports,
    principal_components,
    probe,
    probe_weights,
)
from saelab.evaluation.splicing import LossRecovered, loss_recovered, spliced
from saelab.files.sae_files import export, load, save
from saelab.files.tensor_files import SAEFileError
from saelab.sae.base import ARCHITECTURES, SAELoss, SparseAutoencoder, TrainedOn
from saelab.sae.gated import GatedSAE
from saelab.sae.jumprelu import JumpReLUSAE
from saelab.sae.rescale_shift import RescaleShiftSAE
from saelab.sae.standard import StandardSAE
from saelab.sae.thresholds import threshold_curves
from saelab.training.resampling import resample_dead_features
from saelab.training.sweeps import sweep
from saelab.training.trainer import NonFiniteLossError, Trainer, TrainingConfig, TrainingRecord

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
    "LabelledActivations",
    "LabelledSet",
    "LabelledSplit",
    "LossRecovered",
    "ModelNotFoundError",
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
    "harvest_many",
    "harvest_pooled",
    "harvest_pooled_many",
    "load",
    "load_language_model",
    "load_sentiment",
    "load_text",
    "loss_recovered",
    "matched_cosine_similarity",
    "pool_reports",
    "principal_components",
    "probe",
    "probe_weights",
    "read_features",
    "relative_reconstruction_bias",
    "resample_dead_features",
    "save",
    "sentiment_set",
    "sentiment_sets",
    "spliced",
    "superposition",
    "sweep",
    "threshold_curves",
]

"""SAELab: train, measure and teach sparse autoencoders, the gated kind above all."""

from types import ModuleType as _ModuleType

# The architectures, one line each: importing a class registers it. Menus and legends follow this order.
# isort: off
from saelab.sae.standard import StandardSAE as StandardSAE
from saelab.sae.rescale_shift import RescaleShiftSAE as RescaleShiftSAE
from saelab.sae.gated import GatedSAE as GatedSAE
from saelab.sae.jumprelu import JumpReLUSAE as JumpReLUSAE
from saelab.sae.topk import TopKSAE as TopKSAE
from saelab.sae.batchtopk import BatchTopKSAE as BatchTopKSAE
# isort: on

from saelab.data.activations import ActivationStore as ActivationStore
from saelab.data.activations import harvest as harvest
from saelab.data.activations import harvest_many as harvest_many
from saelab.data.activations import harvest_pooled as harvest_pooled
from saelab.data.activations import harvest_pooled_many as harvest_pooled_many
from saelab.data.labelled import LabelledActivations as LabelledActivations
from saelab.data.labelled import LabelledSet as LabelledSet
from saelab.data.labelled import LabelledSplit as LabelledSplit
from saelab.data.labelled import sentiment_set as sentiment_set
from saelab.data.labelled import sentiment_sets as sentiment_sets
from saelab.data.language_models import ModelNotFoundError as ModelNotFoundError
from saelab.data.language_models import load_language_model as load_language_model
from saelab.data.language_models import load_sentiment as load_sentiment
from saelab.data.language_models import load_text as load_text
from saelab.data.shards import StoreError as StoreError
from saelab.data.synthetic import SuperpositionData as SuperpositionData
from saelab.data.synthetic import superposition as superposition
from saelab.errors import InputError as InputError
from saelab.errors import InputTypeError as InputTypeError
from saelab.errors import SAELabError as SAELabError
from saelab.evaluation.comparisons import compare_at_l0 as compare_at_l0
from saelab.evaluation.comparisons import summarize as summarize
from saelab.evaluation.controls import CONTROLS as CONTROLS
from saelab.evaluation.controls import Control as Control
from saelab.evaluation.controls import pca_dictionary as pca_dictionary
from saelab.evaluation.controls import random_dictionary as random_dictionary
from saelab.evaluation.features import FeatureReading as FeatureReading
from saelab.evaluation.features import read_features as read_features
from saelab.evaluation.metrics import FVU as FVU
from saelab.evaluation.metrics import L0 as L0
from saelab.evaluation.metrics import L1 as L1
from saelab.evaluation.metrics import CosineSimilarity as CosineSimilarity
from saelab.evaluation.metrics import FeatureDensity as FeatureDensity
from saelab.evaluation.metrics import RelativeReconstructionBias as RelativeReconstructionBias
from saelab.evaluation.metrics import SAEMetrics as SAEMetrics
from saelab.evaluation.metrics import evaluate as evaluate
from saelab.evaluation.metrics import relative_reconstruction_bias as relative_reconstruction_bias
from saelab.evaluation.probing import ProbeReport as ProbeReport
from saelab.evaluation.probing import compare_representations as compare_representations
from saelab.evaluation.probing import effective_dimension as effective_dimension
from saelab.evaluation.probing import pool_reports as pool_reports
from saelab.evaluation.probing import principal_components as principal_components
from saelab.evaluation.probing import probe as probe
from saelab.evaluation.probing import probe_weights as probe_weights
from saelab.evaluation.splicing import LossRecovered as LossRecovered
from saelab.evaluation.splicing import loss_recovered as loss_recovered
from saelab.evaluation.splicing import loss_recovered_many as loss_recovered_many
from saelab.evaluation.splicing import spliced as spliced
from saelab.evaluation.truth import DictionaryMatch as DictionaryMatch
from saelab.evaluation.truth import DictionaryStability as DictionaryStability
from saelab.evaluation.truth import TruthReport as TruthReport
from saelab.evaluation.truth import compare_with_truth as compare_with_truth
from saelab.evaluation.truth import dictionary_stability as dictionary_stability
from saelab.evaluation.truth import feature_shrinkage as feature_shrinkage
from saelab.evaluation.truth import matched_cosine_similarity as matched_cosine_similarity
from saelab.files.sae_files import export as export
from saelab.files.sae_files import load as load
from saelab.files.sae_files import save as save
from saelab.files.tensor_files import SAEFileError as SAEFileError
from saelab.sae.base import ARCHITECTURES as ARCHITECTURES
from saelab.sae.base import Encoded as Encoded
from saelab.sae.base import SAELoss as SAELoss
from saelab.sae.base import SparseAutoencoder as SparseAutoencoder
from saelab.sae.base import TrainedOn as TrainedOn
from saelab.sae.declarations import Knob as Knob
from saelab.sae.declarations import Look as Look
from saelab.sae.declarations import LossTerm as LossTerm
from saelab.sae.declarations import Moment as Moment
from saelab.sae.elementwise import ElementwiseSAE as ElementwiseSAE
from saelab.sae.thresholds import threshold_curves as threshold_curves
from saelab.training.resampling import resample_dead_features as resample_dead_features
from saelab.training.runs import NonFiniteLossError as NonFiniteLossError
from saelab.training.runs import TrainingConfig as TrainingConfig
from saelab.training.runs import TrainingRecord as TrainingRecord
from saelab.training.sparsity_search import KnobForL0 as KnobForL0
from saelab.training.sparsity_search import knob_for_l0 as knob_for_l0
from saelab.training.sweeps import sweep as sweep
from saelab.training.trainer import Trainer as Trainer

__version__ = "0.1.0"

__all__ = [name for name, value in globals().items() if not (name.startswith("_") or isinstance(value, _ModuleType))]

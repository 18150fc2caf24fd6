"""Live widgets for sparse autoencoders, for JupyterLab, VS Code, Colab and Binder."""

from saelab_widgets.feature_browser import FeatureBrowser
from saelab_widgets.gate_explorer import GateExplorer
from saelab_widgets.pareto_explorer import ParetoExplorer
from saelab_widgets.probe_explorer import ProbeExplorer
from saelab_widgets.shrinkage_explorer import ShrinkageExplorer
from saelab_widgets.training_lab import TrainingLab

__all__ = ["FeatureBrowser", "GateExplorer", "ParetoExplorer", "ProbeExplorer", "ShrinkageExplorer", "TrainingLab"]

"""Live widgets for sparse autoencoders, for JupyterLab, VS Code, Colab and Binder."""

from saelab_widgets.feature_browser import FeatureBrowser
from saelab_widgets.training_lab import TrainingLab

__all__ = ["FeatureBrowser", "TrainingLab"]

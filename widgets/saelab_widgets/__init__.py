"""Live widgets for sparse autoencoders, for JupyterLab, VS Code, Colab and Binder."""

from saelab_widgets.pareto_explorer import ParetoExplorer
from saelab_widgets.training_lab import TrainingLab

__all__ = ["ParetoExplorer", "TrainingLab"]

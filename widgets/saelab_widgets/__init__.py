"""Live widgets for sparse autoencoders, for JupyterLab, VS Code, Colab and Binder."""

from saelab_widgets.gate_explorer import GateExplorer
from saelab_widgets.training_lab import TrainingLab

__all__ = ["GateExplorer", "TrainingLab"]

"""Which device ``"auto"`` stands for."""

import torch


def automatic_device() -> torch.device:
    """Return this machine's GPU if torch can use it, or else the CPU."""
    # Without a GPU, `current_accelerator` names what torch was built for, or raises (torch 2.6).
    gpu = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return gpu or torch.device("cpu")

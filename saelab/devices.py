"""Which devices this machine has."""

import torch


def automatic_device() -> torch.device:
    """Return this machine's GPU if torch can use it, or else the CPU."""
    # Without a GPU, `current_accelerator` names what torch was built for, or raises (torch 2.6).
    gpu = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return gpu or torch.device("cpu")


def available(device: torch.device | str) -> torch.device:
    """Return ``device`` if this machine has it, or else what ``"auto"`` stands for."""
    wanted, here = torch.device(device), automatic_device()
    is_here = wanted.type == here.type and (wanted.index or 0) < max(1, torch.accelerator.device_count())
    return wanted if wanted.type == "cpu" or is_here else here

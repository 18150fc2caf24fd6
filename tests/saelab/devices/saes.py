"""Every architecture as the tests of devices take it: small, with weights that are all different."""

from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from saelab import (
    BatchTopKSAE,
    GatedSAE,
    JumpReLUSAE,
    RescaleShiftSAE,
    SparseAutoencoder,
    StandardSAE,
    TopKSAE,
)
from saelab.sae.gated import Ablation

DEVICE = "pretend"
D_IN, D_SAE = 8, 16
SAES: dict[str, Callable[..., SparseAutoencoder]] = {
    "standard": StandardSAE,
    "standard, norm-weighted": partial(StandardSAE, preset="norm_weighted"),
    "rescale and shift": RescaleShiftSAE,
    "gated": GatedSAE,
    "gated, norm-weighted": partial(GatedSAE, preset="norm_weighted"),
    **{f"gated, {name}": partial(GatedSAE, ablations=[name]) for name in get_args(Ablation)},
    "jumprelu": JumpReLUSAE,
    "topk": partial(TopKSAE, k=4),
    "batchtopk": partial(BatchTopKSAE, k=4),
}


def an_sae(name: str, device: str = "cpu") -> SparseAutoencoder:
    """With weights that are all different, the same on every device."""
    sae = SAES[name](D_IN, D_SAE, device=device)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(device))
        if isinstance(sae, JumpReLUSAE):
            sae.threshold.abs_()
        if isinstance(sae, BatchTopKSAE):
            sae.threshold.fill_(0.2)
    sae.normalize_decoder()
    return sae


def inputs(n: int = 64, d: int = D_IN) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(2))

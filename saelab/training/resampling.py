"""Give dead features a new life where the reconstruction is worst."""

from collections.abc import Mapping

import torch
from torch import Tensor

from saelab.sae.base import SparseAutoencoder

ENCODER_SHARE = 0.2
"""Norm of a resampled encoder column, as a share of the living ones' mean norm (Bricken et al. 2023)."""


@torch.no_grad()
def resample_dead_features(
    sae: SparseAutoencoder,
    dead: Tensor,
    x: Tensor,
    *,
    moments: Mapping[str, Mapping[str, Tensor]] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Point each dead feature at an input that ``sae`` reconstructs badly (Bricken et al. 2023, "Neuron Resampling").

    Inputs are drawn with a probability proportional to the square of their loss. The feature's decoder row becomes the
    input's direction from ``b_dec`` (at the living rows' mean norm), its encoder column the same direction at
    `ENCODER_SHARE` of the living columns' mean norm, its biases and ``r_mag`` 0.

    Frozen parameters stay as they are. A feature whose decoder row is frozen or held near its start
    (`SparseAutoencoder.hold_decoder`) is pointed along that row instead, and one with a frozen encoder column along
    that column.

    Parameters
    ----------
    sae
        Changed in place.
    dead
        ``(d_sae,)``, boolean.
    x
        ``(n, d_in)``, to draw from; better many more than there are dead features.
    moments
        An optimiser's state by parameter name, features first (`SparseAutoencoder.features_first`); what it holds of
        the resampled features is set to 0.
    generator
        Of the draw, on the CPU.
    """
    if not dead.any():
        return
    directions = _directions(sae, dead, x, generator)
    if directions is None:
        return
    alive = ~dead if not dead.all() else dead
    for name, parameter in sae.named_parameters():
        if not parameter.requires_grad:
            continue
        by_feature = sae.features_first(name, parameter)
        if name in sae.encoder_parameters:
            by_feature[dead] = ENCODER_SHARE * by_feature[alive].norm(dim=1).mean() * directions
        elif name == "W_dec":
            by_feature[dead] = by_feature[alive].norm(dim=1).mean() * directions
        elif name in sae.feature_parameters:
            by_feature[dead] = 0
        else:
            continue
        for moment in (moments or {}).get(name, {}).values():
            if moment.shape == by_feature.shape:  # Adam also counts its steps
                moment[dead] = 0


def _directions(sae: SparseAutoencoder, dead: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
    """Where to point the dead features, unit vectors ``(n_dead, d_in)``; None if every input is reconstructed."""
    if sae.decoder_cosine is not None:
        return sae.get_buffer("decoder_start")[dead]
    for name in ("W_dec", "W_enc"):
        if name in sae.frozen:
            return torch.nn.functional.normalize(sae.features_first(name, sae.get_parameter(name))[dead], dim=1)
    parts = torch.split(x, 1024)  # codes of all at once could be large
    error = torch.cat([(part - sae(part)).square().sum(dim=1) for part in parts]).cpu().double()
    if not error.any():
        return None
    n_dead = int(dead.count_nonzero())
    chance = (error / error.max()).square()
    few = int(chance.count_nonzero()) < n_dead
    rows = torch.multinomial(chance, n_dead, replacement=few, generator=generator)
    return torch.nn.functional.normalize(x[rows.to(x.device)] - sae.b_dec, dim=1)

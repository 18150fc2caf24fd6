"""What a trained SAE has to beat: the same SAE with random directions, and dictionaries that nobody trained.

On common measures SAEs with frozen random decoders or encoders come close to trained ones (Korznikov et al. 2026,
arXiv 2602.14111), so a measure says something about what was learned only beside these.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.data.activations import ActivationStore, Rows
from saelab.errors import InputError
from saelab.quantities import GREY, Spread
from saelab.sae.base import SparseAutoencoder, check_activations
from saelab.sae.declarations import Look
from saelab.sae.topk import TopKSAE

BATCH = 4096
"""Activations at a time."""
NO_CONTROL = "none"
"""In the column ``control`` of a table: an SAE trained as it is."""


@dataclass(frozen=True)
class Control:
    """A way of training an SAE with some of its random directions kept; any architecture takes it."""

    label: str
    """What figures and widgets call it."""
    meaning: str
    """What is kept, in one line without a full stop."""
    keeps_decoder: bool = False
    keeps_encoder: bool = False
    """Its columns are then the decoder's rows, not `saelab.sae.base.ENCODER_SCALE` times these: no training could
    lengthen them. On layer 1 of the embedded model, 1000 steps, a gated SAE with a frozen encoder ended at FVU 0.42
    with L0 24 from a scale of 0.4, and at 0.58 with L0 17 from 0.1 (one seed)."""
    decoder_cosine: float | None = None
    """Least cosine of a decoder row with where it started."""

    def apply(self, sae: SparseAutoencoder) -> SparseAutoencoder:
        """``sae`` itself, untrained, as this control.

        Raises
        ------
        ValueError
            Its architecture starts from a trained SAE, whose directions are not random.
        """
        if not sae.trains_from_scratch:
            raise InputError(
                f"a {sae.label} SAE starts from a trained one, so a control of it would keep directions that were "
                "learned; make it from a control of the other architecture"
            )
        if self.keeps_decoder:
            sae.freeze(("W_dec",))
        if self.keeps_encoder:
            with torch.no_grad():
                for name in sae.encoder_parameters:
                    sae.get_parameter(name).copy_(sae.W_dec.T)
            sae.freeze(sae.encoder_parameters)
        if self.decoder_cosine is not None:
            sae.hold_decoder(self.decoder_cosine)
        return sae


CONTROLS = {
    "frozen_decoder": Control("frozen decoder", "random decoder that is not trained", keeps_decoder=True),
    "soft_frozen_decoder": Control(
        "soft-frozen decoder", "decoder rows kept within a cosine of 0.8 of where they started", decoder_cosine=0.8
    ),
    "frozen_encoder": Control("frozen encoder", "random encoder that is not trained", keeps_encoder=True),
}
"""The controls of Korznikov et al. by name, for `saelab.sweep`."""
UNTRAINED = {"pca": "PCA", "random": "random dictionary"}
"""Labels of `pca_dictionary` and `random_dictionary` in a table's column ``control``."""
_DOTS = (1, 1.5)
_MARKERS = dict(zip(UNTRAINED, ("X", "P"), strict=True))
_DASHES = dict(zip((*CONTROLS, *UNTRAINED), (_DOTS, (4, 1.5), (6, 1.5, 1, 1.5), (2, 3), (8, 3)), strict=True))
"""All controls are grey, and told apart by their dashes."""


def label_of_control(name: str) -> str:
    """What figures and widgets call a control; any other name stands for itself."""
    return CONTROLS[name].label if name in CONTROLS else UNTRAINED.get(name, name)


def label_as_control(trained: str, control: str) -> str:
    """What a legend calls a line of controls; ``trained`` is the label of the same SAE trained as it is."""
    label = label_of_control(control)
    return label if control in UNTRAINED else f"{trained}, {label}"


def look_of_control(control: str, marker: str) -> Look:
    """How figures and widgets draw a control, with the ``marker`` of what it is a control of."""
    marker = _MARKERS.get(control, marker)  # untrained dictionaries control no architecture
    return Look(GREY.light, GREY.dark, marker, _DASHES.get(control, _DOTS), width=1.0)


@torch.no_grad()
def pca_dictionary(activations: Tensor | ActivationStore, d_sae: int, k: int) -> TopKSAE:
    """An SAE whose features are the principal directions of ``activations``, both ways, and of which ``k`` are on.

    Codes are the ``k`` largest projections of ``x - mean``, in absolute value; no other ``k`` reconstruct better from
    this dictionary, whose directions are orthogonal.

    Parameters
    ----------
    activations
        ``(n, d_in)``, at least one row.
    d_sae
        Number of features, at most: two for each principal direction, of the greatest variance first.
    k
        Features on per input.

    Returns
    -------
    TopKSAE
        Frozen, of width ``min(d_sae, 2 * d_in)`` rounded down to an even number.

    Raises
    ------
    TypeError, ValueError
        Like `check_activations`; ``d_sae`` is below 2, or ``k`` more than the number of directions.
    """
    rows = _rows(activations)
    n_directions = min(d_sae // 2, rows.shape[-1])
    if not 1 <= k <= n_directions:
        raise InputError(
            f"k must lie between 1 and the number of principal directions, here {n_directions} (half of d_sae={d_sae}, "
            f"and at most d_in), not {k}"
        )
    mean = _mean(rows)
    scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for x in _batches(rows):
        centred = x.double() - mean
        scatter += centred.T @ centred
    directions = torch.linalg.eigh(scatter).eigenvectors.T.flip(0)[:n_directions]
    return _untrained(torch.cat([directions, -directions]), mean, k, factor=1.0)


@torch.no_grad()
def random_dictionary(activations: Tensor | ActivationStore, d_sae: int, k: int, seed: int = 0) -> TopKSAE:
    """An SAE of random directions of which the ``k`` with the largest projections are on, and which learned nothing.

    All codes have one factor, the one that reconstructs ``activations`` with the least squared error.

    Parameters
    ----------
    activations
        ``(n, d_in)``, at least one row; only their mean and that factor are taken from them.
    d_sae, k
        Number of features, and how many are on per input, at most.
    seed
        Of the directions, which are those of an untrained SAE of the same seed.

    Raises
    ------
    TypeError, ValueError
        Like `check_activations`; ``k`` does not lie between 1 and ``d_sae``.
    """
    rows = _rows(activations)
    start = TopKSAE(rows.shape[-1], d_sae, k, seed=seed, dtype=torch.float64)
    mean = _mean(rows)
    sae = _untrained(start.W_dec, mean, k, factor=1.0)
    xr = rr = 0.0
    for x in _batches(rows):
        centred = x.double() - mean
        reconstruction = sae(x.to(sae.W_dec.dtype)).double() - mean
        xr += float((centred * reconstruction).sum())
        rr += float(reconstruction.square().sum())
    return _untrained(start.W_dec, mean, k, factor=xr / rr if rr else 1.0)


def _untrained(directions: Tensor, mean: Tensor, k: int, factor: float) -> TopKSAE:
    """A frozen SAE with these unit vectors, ``(d_sae, d_in)``, as its features."""
    d_sae, d_in = directions.shape
    sae = TopKSAE(d_in, d_sae, k, frozen=("W_enc", "W_dec", "b_dec", "b_enc"))
    sae.W_dec.copy_(directions)
    sae.W_enc.copy_(factor * directions.T)
    sae.b_dec.copy_(mean)
    return sae


def _rows(activations: Tensor | ActivationStore) -> Rows:
    rows = activations.activations if isinstance(activations, ActivationStore) else activations
    if isinstance(rows, Tensor):
        check_activations(rows)
    return rows


def _batches(rows: Rows) -> Iterator[Tensor]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH].cpu()


def _mean(rows: Rows) -> Tensor:
    """``(d_in,)``, float64."""
    return Spread.pooled(map(Spread.of, _batches(rows))).mean

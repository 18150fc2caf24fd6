"""An SAE as it stood when `GateExplorer` looked at it, and what the page needs to answer every threshold."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.errors import InputError
from saelab.quantities import Spread
from saelab.sae.base import SparseAutoencoder, check_activations
from saelab.sae.elementwise import ElementwiseSAE, elementwise
from saelab.sae.sparse import Pattern
from saelab.sae.thresholds import Gates

TYPICAL_DENSITY = 0.03
"""Density of the feature that is shown first, roughly: on often enough for a histogram, and still sparse."""


class Snapshot:
    """An SAE as it stood, with what all thresholds are answered from: its gate pre-activations on ``x``."""

    sae: ElementwiseSAE
    x: Tensor

    @torch.no_grad()
    def __init__(self, sae: SparseAutoencoder, x: Tensor) -> None:
        self.sae = elementwise(sae.requires_grad_(False).float().cpu(), "GateExplorer")
        self.x = x
        check_activations(x, sae.d_in)
        self._gates = self.gates_of(x)
        self.gate_threshold = self.sae.gate_threshold
        """The SAE's own."""
        try:
            self.slope, self.shift = self.sae.magnitude_line()
        except InputError as error:
            raise InputError(f"GateExplorer cannot show this SAE: {error}") from error
        self.densities = (self._gates.codes(self.gate_threshold) > 0).double().mean(dim=0)
        self.variance = float(Spread.of(x).variance)
        self._decoded: tuple[tuple[float, float], tuple[Tensor, Tensor, Tensor]] | None = None

    def gates_of(self, x: Tensor) -> Gates:
        return Gates(self.sae, x.float())

    def look(self, features: list[int], threshold: float, natural: float) -> tuple[bytes, list[dict[str, Any]]]:
        """What is needed to try other thresholds for one feature alone, with all others as they stand.

        With d the feature's row of the decoder and r' the reconstruction without it, float32: its gate pre-activation,
        x . d and (r' - x) . d, for each token; features one after the other. Beside each a dict: E[r' . r'],
        E[x . r'], E||r' - x||^2 and L0 without the feature. A code c changes the last square by
        2 E[c (r' - x) . d] + ||d||^2 E[c^2], and E||r||^2 alike.
        """
        codes, reconstruction, residual = self._decode(threshold, natural)
        own = codes[:, features]
        directions = self.sae.W_dec[features]
        norms = directions.double().square().sum(dim=1)
        along_x = self.x @ directions.T
        c = own.double()
        along_error = (residual @ directions.T).double().sub_(c * norms).float()
        rows = (
            torch.stack([self._gates.pi_gate[:, features], along_x, along_error], dim=-1).permute(1, 0, 2).contiguous()
        )
        r, e = reconstruction.double(), residual.double()
        along_rest = along_error.double() + along_x
        l0 = float((codes > 0).sum()) / len(codes) - (own > 0).double().mean(dim=0)
        squares = norms * c.square().mean(dim=0)
        rr = r.square().sum() / len(r) - 2 * (c * along_rest).mean(dim=0) - squares
        ee = e.square().sum() / len(e) - 2 * (c * along_error).mean(dim=0) - squares
        xr = (r * self.x).sum() / len(r) - (c * along_x).mean(dim=0)
        of = [
            {
                "feature": feature,
                "gate_threshold": threshold,
                "natural": natural,
                "slope": float(self.slope[feature]),
                "shift": float(self.shift[feature]),
                "norm": float(norms[place]),
                "l0": float(l0[place]),
                "rr": float(rr[place]),
                "xr": float(xr[place]),
                "error": float(ee[place]),
                "variance": self.variance,
            }
            for place, feature in enumerate(features)
        ]
        return rows.numpy().tobytes(), of

    def _decode(self, threshold: float, natural: float) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, reconstruction and residual.

        Those of the last time are kept, as another feature is the usual next question.
        """
        if self._decoded is None or self._decoded[0] != (threshold, natural):
            codes = self._gates.codes(threshold, natural)
            flat = codes.flatten().nonzero().squeeze(1)
            pattern = Pattern.at(flat, *codes.shape)
            decoded, b_dec = pattern.matmul(codes.flatten()[flat], self.sae.W_dec), self.sae.b_dec
            self._decoded = ((threshold, natural), (codes, decoded + b_dec, decoded + (b_dec - self.x)))
        return self._decoded[1]

    def typical_feature(self) -> int:
        """One of about `TYPICAL_DENSITY`, on a log scale."""
        return int((self.densities.clamp(min=1e-9) / TYPICAL_DENSITY).log().abs().argmin())

    def varied_features(self, chosen: int, n: int) -> list[int]:
        """Up to ``n`` features from dense to rare, at equal steps along the sorted densities, ``chosen`` among them."""
        order = self.densities.argsort(descending=True, stable=True)
        n_alive = max(int((self.densities > 0).sum()), 1)
        places = np.linspace(0, n_alive - 1, min(n - 1, n_alive)).round().astype(int)
        rank = int((order == chosen).nonzero())
        return [int(order[place]) for place in sorted({*places.tolist(), rank})]

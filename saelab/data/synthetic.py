"""Synthetic activations in superposition: more features than dimensions, with every feature known.

The toy setting of Elhage et al. 2022 (Toy Models of Superposition, https://transformer-circuits.pub/2022/toy_model) and
Sharkey et al. 2022 (Taking features out of superposition with sparse autoencoders): few features are on at a time, each
adds its own direction times its magnitude, and an SAE should recover them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from saelab.errors import InputError, InputTypeError

Magnitudes = Literal["uniform", "exponential", "constant"]

CORRELATED_GROUP = 4
"""Size of the consecutive groups of features that fire together in `superposition`; the last may be smaller."""

_BLOCK = 4096
"""Samples drawn at a time, to bound memory. With another value, the same seed gives other data."""

_STREAM = 0x5AE1AB
"""Makes the dictionary differ from an SAE's initial decoder: both draw normal rows, and both default to seed 0."""


@dataclass(frozen=True, eq=False, repr=False)
class SuperpositionData:
    """Activations with the features they consist of: ``activations = codes @ dictionary``, plus noise if any.

    ``len(data)`` is the number of activations.
    """

    activations: Tensor
    """``(n, d_in)``, scaled so that E||x||^2 = d_in over these samples."""
    codes: Tensor
    """``(n, n_features)``: the true magnitudes, in units of ``activations``; 0 for a feature that is off."""
    dictionary: Tensor
    """``(n_features, d_in)``: the true directions, rows of unit norm."""
    density: Tensor
    """``(n_features,)``: the requested probability that each feature is on."""
    scale: float
    """The factor that was applied: the magnitudes before scaling are ``codes / scale``."""
    noise: float
    """Standard deviation of the noise per dimension, in units of ``activations``."""

    def __len__(self) -> int:
        return len(self.activations)

    def __repr__(self) -> str:
        n_features, d_in = self.dictionary.shape
        return f"SuperpositionData(n_samples={len(self)}, {n_features=}, {d_in=}, noise={self.noise:g})"


def superposition(
    n_features: int,
    d_in: int,
    density: float | Tensor,
    *,
    n_samples: int = 20_000,
    magnitudes: Magnitudes | Callable[[tuple[int, ...], torch.Generator], Tensor] = "uniform",
    correlated: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> SuperpositionData:
    """Sparse non-negative combinations of ``n_features`` random unit directions in ``d_in`` dimensions.

    Directions are uniform on the sphere. Everything is float32 on the CPU, and the same seed gives the same data; no
    global random state is read or changed.

    Parameters
    ----------
    n_features, d_in
        Number of true features and width of the activations. Superposition means that ``n_features > d_in``.
    density
        Probability that a feature is on, in (0, 1]: one number for all features, or ``(n_features,)``. The expected L0
        is the sum over features.
    n_samples
        Number of activations.
    magnitudes
        Magnitudes of features that are on, before scaling: ``"uniform"`` on (0, 1], ``"exponential"`` with mean 1, or
        ``"constant"`` 1; or a function of a shape ``(n_on,)`` and a `torch.Generator` that returns finite magnitudes of
        at least 0.
    correlated
        How much features fire together within consecutive groups of `CORRELATED_GROUP`, in [0, 1). This is the
        correlation of the normal variables whose tails decide which features fire (a Gaussian copula), so each feature
        keeps its exact density; the correlation of firing itself is lower. Groups are independent of each other.
    noise
        Standard deviation per dimension of the normal noise on the scaled activations, in [0, 1). Since
        E||x||^2 = d_in, ``noise ** 2`` is the expected share of noise in it.
    seed
        Seed of all random numbers.

    Raises
    ------
    TypeError, ValueError
        An argument is outside its range (the message says what is allowed), or no feature is ever on, so that the data
        cannot be scaled.

    Examples
    --------
    >>> data = superposition(n_features=64, d_in=16, density=0.05)
    >>> Trainer(GatedSAE(16, 64), data.activations).run()
    """
    for name, value in (("n_features", n_features), ("d_in", d_in), ("n_samples", n_samples)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    for name, share in (("correlated", correlated), ("noise", noise)):
        if not 0 <= share < 1:
            raise InputError(f"{name} must lie in [0, 1), not {share}")
    given = density.detach().cpu() if isinstance(density, Tensor) else density
    probabilities = torch.as_tensor(given, dtype=torch.float64)
    if probabilities.ndim == 0:
        probabilities = probabilities.expand(n_features)
    if probabilities.shape != (n_features,):
        raise InputError(
            f"density must be one number or of shape ({n_features},), one per feature, not {tuple(probabilities.shape)}"
        )
    outside = probabilities[~((probabilities > 0) & (probabilities <= 1))]
    if len(outside):
        raise InputError(f"density must lie in (0, 1], not {float(outside[0])}; leave out a feature that is never on")
    if not callable(magnitudes) and magnitudes not in get_args(Magnitudes):
        raise InputError(
            f"magnitudes must be one of {', '.join(get_args(Magnitudes))}, or a function of a shape and a "
            f"torch.Generator, not {magnitudes!r}"
        )

    generator = torch.Generator().manual_seed(seed ^ _STREAM)
    dictionary = torch.nn.functional.normalize(torch.randn(n_features, d_in, generator=generator))
    codes = torch.zeros(n_samples, n_features)
    for block in torch.split(codes, _BLOCK):
        on = _firing(len(block), probabilities, correlated, generator)
        block.masked_scatter_(on, _magnitudes(magnitudes, int(on.sum()), generator))
    signal = codes @ dictionary
    noise_drawn = noise * torch.randn(n_samples, d_in, generator=generator) if noise else None
    scale = _scale(signal, noise_drawn)
    codes *= scale
    torch.matmul(codes, dictionary, out=signal)  # multiplying by scale instead would round differently
    activations = signal if noise_drawn is None else signal.add_(noise_drawn)
    return SuperpositionData(activations, codes, dictionary, probabilities.float(), scale, noise)


def _firing(n: int, density: Tensor, correlated: float, generator: torch.Generator) -> Tensor:
    """Which features are on, ``(n, n_features)`` bool; the correlation does not change their probabilities."""
    n_features = len(density)
    if not correlated:
        return torch.rand(n, n_features, generator=generator) < density.float()
    n_groups = math.ceil(n_features / CORRELATED_GROUP)
    shared = torch.randn(n, n_groups, 1, generator=generator)
    own = torch.randn(n, n_groups, CORRELATED_GROUP, generator=generator)
    normal = own.mul_(math.sqrt(1 - correlated)).add_(shared, alpha=math.sqrt(correlated))  # variance 1
    threshold: Tensor = torch.special.ndtri(density)
    return normal.flatten(1)[:, :n_features] < threshold.float()


def _magnitudes(
    magnitudes: Magnitudes | Callable[[tuple[int, ...], torch.Generator], Tensor], n: int, generator: torch.Generator
) -> Tensor:
    if magnitudes == "uniform":
        return 1 - torch.rand(n, generator=generator)  # never 0, as a feature that is on has a code above 0
    if magnitudes == "exponential":
        return torch.empty(n).exponential_(generator=generator)
    if magnitudes == "constant":
        return torch.ones(n)
    values = magnitudes((n,), generator)
    if not isinstance(values, Tensor) or values.shape != (n,):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InputTypeError(f"magnitudes must return a torch.Tensor of the shape it was given, ({n},), not {got}")
    if not (values.isfinite() & (values >= 0)).all():
        raise InputError("magnitudes must return finite values of at least 0; a code is never negative")
    return values.float()


def _scale(signal: Tensor, noise: Tensor | None) -> float:
    """The s > 0 for which E||s signal + noise||^2 = d_in over these samples."""

    def mean_dot(a: Tensor, b: Tensor) -> float:
        return float((a * b).sum(dtype=torch.float64)) / len(a)

    n_samples, d_in = signal.shape
    power = mean_dot(signal, signal)
    if power == 0:
        raise InputError(f"no feature is on in any of {n_samples} samples; raise density or n_samples")
    if noise is None:
        return math.sqrt(d_in / power)
    cross, noise_power = mean_dot(signal, noise), mean_dot(noise, noise)
    if noise_power >= d_in:
        raise InputError(f"noise leaves no room for features in {n_samples} samples; lower it or raise n_samples")
    return (math.sqrt(cross**2 + power * (d_in - noise_power)) - cross) / power

"""Synthetic activations in superposition: more features than dimensions, with every feature known.

The toy setting of Elhage et al. 2022 (Toy Models of Superposition, https://transformer-circuits.pub/2022/toy_model) and
Sharkey et al. 2022 (Taking features out of superposition with sparse autoencoders): few features are on at a time, each
adds its own direction times its magnitude, and an SAE should recover them. Frequencies that fall with the rank and
features that depend on others come closer to language models, as in SynthSAEBench (Chanin and Garriga-Alonso 2026,
arXiv 2602.14687).
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
    """``(n_features,)``: the requested probability that each feature is on; a child's is over all inputs."""
    parents: Tensor
    """``(n_features,)``: the parent of each feature, without which it is never on; -1 for none."""
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
    zipf: float = 0.0,
    n_parents: int = 0,
    children_per_parent: int = 2,
    child_probability: float = 0.2,
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
        Probability that a feature is on, in (0, 1]: one number for all features, or ``(n_features,)``. Children have
        their own, see ``n_parents``. The expected L0 is the sum of `SuperpositionData.density`.
    n_samples
        Number of activations.
    magnitudes
        Magnitudes of features that are on, before scaling: ``"uniform"`` on (0, 1], ``"exponential"`` with mean 1, or
        ``"constant"`` 1; or a function of a shape ``(n_on,)`` and a `torch.Generator` that returns finite magnitudes of
        at least 0.
    zipf
        Exponent a of frequencies that fall with the rank, as those of words do: feature i is on with a probability
        proportional to ``1 / (i + 1) ** a``, whose mean is ``density``, one number. With 0, all are equally frequent.
        Children (see ``n_parents``) count neither in the ranks nor in the mean.
    n_parents, children_per_parent, child_probability
        The first ``n_parents`` features are parents, the next ``n_parents * children_per_parent`` their children, those
        of the first parent first, and the rest have neither. A child is on only if its parent is, and then with
        ``child_probability``, in (0, 1]: its probability is the product of the two, whatever ``density`` says of it.
        Siblings fire independently. On such data SAEs learn children that absorb their parent (Chanin et al. 2024,
        arXiv 2409.14507; `saelab.compare_with_truth` measures it).
    correlated
        How much features fire together within consecutive groups of `CORRELATED_GROUP`, in [0, 1). This is the
        correlation of the normal variables whose tails decide which features fire (a Gaussian copula), so each feature
        keeps its exact density; the correlation of firing itself is lower. Groups are independent of each other. Not
        together with ``n_parents``.
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
    >>> hierarchy = superposition(64, 16, 0.05, zipf=0.5, n_parents=8, children_per_parent=3, child_probability=0.3)
    """
    for name, value in (("n_features", n_features), ("d_in", d_in), ("n_samples", n_samples)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    for name, share in (("correlated", correlated), ("noise", noise)):
        if not 0 <= share < 1:
            raise InputError(f"{name} must lie in [0, 1), not {share}")
    if not 0 <= zipf < math.inf:
        raise InputError(f"zipf must be a finite number of at least 0, not {zipf}; 0 gives all features one frequency")
    parents = _parents(n_features, n_parents, children_per_parent)
    if n_parents and not 0 < child_probability <= 1:
        raise InputError(f"child_probability must lie in (0, 1], not {child_probability}")
    if n_parents and correlated:
        raise InputError(
            "correlated and n_parents cannot be combined: a group would mix parents and children; leave one at 0"
        )
    probabilities = _probabilities(n_features, density, zipf, parents == -1)
    if not callable(magnitudes) and magnitudes not in get_args(Magnitudes):
        raise InputError(
            f"magnitudes must be one of {', '.join(get_args(Magnitudes))}, or a function of a shape and a "
            f"torch.Generator, not {magnitudes!r}"
        )

    children = parents >= 0
    given_parent = probabilities.clone()
    given_parent[children] = child_probability
    probabilities[children] = child_probability * probabilities[parents[children]]
    generator = torch.Generator().manual_seed(seed ^ _STREAM)
    dictionary = torch.nn.functional.normalize(torch.randn(n_features, d_in, generator=generator))
    codes = torch.zeros(n_samples, n_features)
    for block in torch.split(codes, _BLOCK):
        on = _firing(len(block), given_parent, correlated, generator)
        on[:, children] &= on[:, parents[children]]
        block.masked_scatter_(on, _magnitudes(magnitudes, int(on.sum()), generator))
    signal = codes @ dictionary
    noise_drawn = noise * torch.randn(n_samples, d_in, generator=generator) if noise else None
    scale = _scale(signal, noise_drawn)
    codes *= scale
    torch.matmul(codes, dictionary, out=signal)  # multiplying by scale instead would round differently
    activations = signal if noise_drawn is None else signal.add_(noise_drawn)
    return SuperpositionData(activations, codes, dictionary, probabilities.float(), parents, scale, noise)


def _parents(n_features: int, n_parents: int, children_per_parent: int) -> Tensor:
    """``(n_features,)``: the parent of each feature, -1 for none."""
    if n_parents < 0:
        raise InputError(f"n_parents must be at least 0, not {n_parents}")
    if n_parents and children_per_parent < 1:
        raise InputError(f"children_per_parent must be at least 1, not {children_per_parent}")
    n_children = n_parents * children_per_parent
    if n_parents + n_children > n_features:
        raise InputError(
            f"{n_parents} parents with {children_per_parent} children each are {n_parents + n_children} features, but "
            f"n_features is {n_features}; ask for fewer parents or children, or more features"
        )
    parents = torch.full((n_features,), -1)
    parents[n_parents : n_parents + n_children] = torch.arange(n_parents).repeat_interleave(children_per_parent)
    return parents


def _probabilities(n_features: int, density: float | Tensor, zipf: float, is_root: Tensor) -> Tensor:
    """``(n_features,)``, float64: how often each feature is on, if all were without a parent."""
    given = density.detach().cpu() if isinstance(density, Tensor) else density
    probabilities = torch.as_tensor(given, dtype=torch.float64)
    if zipf and probabilities.ndim:
        raise InputError("zipf spreads one density over all features; give density as a number, or leave zipf at 0")
    if probabilities.ndim == 0:
        probabilities = probabilities.expand(n_features)
    if probabilities.shape != (n_features,):
        raise InputError(
            f"density must be one number or of shape ({n_features},), one per feature, not {tuple(probabilities.shape)}"
        )
    outside = probabilities[~((probabilities > 0) & (probabilities <= 1))]
    if len(outside):
        raise InputError(f"density must lie in (0, 1], not {float(outside[0])}; leave out a feature that is never on")
    probabilities = probabilities.clone()
    if zipf:
        falling = torch.arange(1, int(is_root.sum()) + 1, dtype=torch.float64) ** -zipf
        probabilities[is_root] *= falling / falling.mean()
        if probabilities[0] > 1:
            raise InputError(
                f"with zipf={zipf} and density={density}, feature 0 would be on with probability "
                f"{float(probabilities[0]):.3g}; lower one of them"
            )
    return probabilities


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

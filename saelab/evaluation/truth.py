"""An SAE against data whose features are known: which did it find, and is each on where it should be?

The reconstruction error does not tell: it can be small with wrong features, even with random ones (Korznikov et al.
2026, arXiv 2602.14111). Where the features are not known, training with several seeds shows which of them come back.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from saelab.data.synthetic import SuperpositionData
from saelab.errors import InputError, InputTypeError
from saelab.quantities import as_line, as_table, where_float64_is
from saelab.sae.base import SparseAutoencoder

if TYPE_CHECKING:
    import pandas as pd


class DictionaryMatch(NamedTuple):
    """What `matched_cosine_similarity` returns: which learned feature stands for which true one, and how well."""

    mean: float
    """Of ``similarity``: 1 where every true feature was found."""
    similarity: Tensor
    """``(n_features,)``, float64: cosine between each true feature and its learned one; 0 where it has none."""
    matching: Tensor
    """``(n_features,)``: index of the learned feature for each true one; -1 where it has none."""


def matched_cosine_similarity(dictionary: Tensor, truth: Tensor) -> DictionaryMatch:
    """How well a learned dictionary recovers the true one: each true feature against a learned feature of its own.

    The matching is the one-to-one matching of the greatest total cosine similarity. Learned features beyond the number
    of true ones cost nothing; a true feature left without one, where there are fewer, counts as 0 in the mean. Signs
    matter, for codes are never negative: the opposite direction has similarity -1. A row of zeros has similarity 0.

    Parameters
    ----------
    dictionary
        Learned features, ``(d_sae, d_in)``: ``sae.W_dec``. Its rows may have any norm.
    truth
        True features, ``(n_features, d_in)``, such as `saelab.data.synthetic.SuperpositionData.dictionary`.

    Raises
    ------
    ValueError
        Dictionaries that are not matrices, empty, of different widths, or hold NaN.
    """
    return _matched(_cosines(dictionary, truth))


def _cosines(dictionary: Tensor, truth: Tensor) -> Tensor:
    """``(n_features, d_sae)``, float64: cosine between each true and each learned feature."""
    for name, rows in (("dictionary", dictionary), ("truth", truth)):
        if rows.ndim != 2 or rows.numel() == 0:
            raise InputError(f"{name} must be (features, d_in) with at least one row, not of shape {tuple(rows.shape)}")
        if not torch.isfinite(rows).all():
            raise InputError(f"{name} holds NaN or infinite values")
    if dictionary.shape[1] != truth.shape[1]:
        raise InputError(
            f"dictionary has width {dictionary.shape[1]}, but truth {truth.shape[1]}; both are (features, d_in)"
        )
    learned, true = (torch.nn.functional.normalize(rows.detach().cpu().double()) for rows in (dictionary, truth))
    return true @ learned.T


def _matched(cosines: Tensor) -> DictionaryMatch:
    from scipy.optimize import linear_sum_assignment

    rows, columns = (torch.as_tensor(index) for index in linear_sum_assignment(cosines.numpy(), maximize=True))
    similarity = torch.zeros(len(cosines), dtype=torch.float64)
    similarity[rows] = cosines[rows, columns]
    matching = torch.full((len(cosines),), -1)
    matching[rows] = columns
    return DictionaryMatch(float(similarity.mean()), similarity, matching)


@torch.no_grad()
def feature_shrinkage(
    codes: Tensor, true_codes: Tensor, matching: Tensor, *, decoder_norms: Tensor | None = None
) -> Tensor:
    """Share of each true feature's magnitude that its learned feature recovers, ``(n_features,)``, float64.

    For true feature i: the mean code of its learned feature over the inputs where i is on, divided by the mean true
    magnitude over the same inputs. 1 is unbiased, below 1 is shrinkage. Inputs where the learned feature fails to
    switch on count, with code 0. NaN where i is never on or has no learned feature.

    Parameters
    ----------
    codes
        Learned codes, ``(n, d_sae)``.
    true_codes
        True magnitudes of the same inputs, ``(n, n_features)``, along true directions of unit norm.
    matching
        ``(n_features,)``: the learned feature of each true one, -1 for none; from `matched_cosine_similarity`.
    decoder_norms
        ``(d_sae,)``: norms of the decoder's rows, ``sae.W_dec.norm(dim=1)``. A code is a magnitude only times its row's
        norm; needed where rows are not of unit norm (preset ``"norm_weighted"``).

    Raises
    ------
    ValueError
        Shapes that do not fit together.
    """
    if codes.ndim != 2 or true_codes.ndim != 2 or len(codes) != len(true_codes):
        raise InputError(
            f"codes have shape {tuple(codes.shape)}, but true_codes {tuple(true_codes.shape)}; "
            "expected (n, d_sae) and (n, n_features) of the same n inputs"
        )
    d_sae, n_features = codes.shape[1], true_codes.shape[1]
    if matching.shape != (n_features,) or not ((matching >= -1) & (matching < d_sae)).all():
        raise InputError(
            f"matching must hold, for each of {n_features} true features, an index below {d_sae} or -1, "
            f"in shape ({n_features},); got shape {tuple(matching.shape)}"
        )
    if decoder_norms is not None and decoder_norms.shape != (d_sae,):
        raise InputError(f"decoder_norms have shape {tuple(decoder_norms.shape)}, but codes {tuple(codes.shape)}")
    learned, true = (where_float64_is(values.detach()) for values in (codes, true_codes))
    matching = matching.to(learned.device)
    found = matching >= 0
    recovered = torch.full((n_features,), math.nan, dtype=torch.float64, device=learned.device)
    on = (true[:, found] > 0) * learned[:, matching[found]]
    recovered[found] = on.sum(dim=0, dtype=torch.float64)
    if decoder_norms is not None:
        recovered[found] *= decoder_norms.to(recovered.device).to(recovered)[matching[found]]
    return recovered / true.sum(dim=0, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TruthReport:
    """What `compare_with_truth` returns. Printed, it is a table; `as_dict` is a row of a DataFrame.

    A true feature's learned feature is the one matched to it one to one, by `matched_cosine_similarity`.
    """

    found: float
    """Share of true features whose learned feature has a cosine above ``found_above`` with them."""
    matched_cosine: float
    """Mean over true features of the cosine to their learned feature; 0 counts for one without."""
    mmcs: float
    """Mean over true features of the greatest cosine to any learned feature, which several may share: mean max cosine
    similarity (Sharkey et al. 2022). It rises with the number of learned features, random ones too."""
    uniqueness: float
    """Each learned feature has a nearest true one, that of the greatest cosine. The number of different ones among
    these, over the number of learned features: 1 if no two learned features share one, and below 1 if there are more
    learned than true features. From SynthSAEBench (arXiv 2602.14687), which ignores the sign of the cosine."""
    precision: float
    """Of the inputs where a learned feature is on, the share where its true feature is; 0 if it is never on. This,
    `recall` and `f1` are means over the true features that are ever on; one without a learned feature counts as 0."""
    recall: float
    """Of the inputs where a true feature is on, the share where its learned feature is."""
    f1: float
    """Harmonic mean of precision and recall, for each feature before the mean."""
    absorption: float
    """Of the inputs where a parent, its child and the child's learned feature are on, the share where the parent's
    learned feature is off; pooled over all children. NaN without such inputs, as in data without a hierarchy."""
    missed_alone: float
    """Compare `absorption` with it: of the inputs where a parent is on and none of its children is, the share where the
    parent's learned feature is off. A parent that was never found is missed in both cases; an absorbed one is missed
    only beside its children."""
    match: DictionaryMatch
    """The matching, with each true feature's cosine."""

    def as_dict(self) -> dict[str, float]:
        """Every number by name, without `match`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "match"}

    def __str__(self) -> str:
        return as_table(self.as_dict(), ".4g")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({as_line(self.as_dict(), '.4g')})"


@torch.no_grad()
def compare_with_truth(
    sae: SparseAutoencoder | tuple[Tensor, Tensor],
    data: SuperpositionData,
    *,
    found_above: float = 0.9,
    batch_size: int = 4096,
) -> TruthReport:
    """Judge ``sae`` by the features that ``data`` consists of: directions, and where each is on.

    Absorption is that of Chanin et al. 2024 (arXiv 2409.14507): the parent's feature stays off where a child is on,
    because the child's feature carries the parent's direction as well. They tell by probes which features are on; here
    the data say it.

    Parameters
    ----------
    sae
        As it stands, with its `gate_threshold`; or a dictionary ``(d_sae, d_in)`` and the codes ``(n, d_sae)`` that it
        has for ``data.activations``. The norms of the dictionary's rows play no part.
    data
        From `superposition`, or of that form. To judge by samples after the first n only, which the SAE was trained on,
        pass ``dataclasses.replace(data, activations=data.activations[n:], codes=data.codes[n:])``.
    found_above
        The cosine above which a true feature counts as found, in [0, 1).
    batch_size
        Inputs at a time, at most.

    Raises
    ------
    TypeError, ValueError
        Something else than an SAE or such a pair; a dictionary of another width than the data, codes of another shape;
        NaN; an argument outside its range.

    Examples
    --------
    >>> data = superposition(64, 32, 0.05, n_parents=8, children_per_parent=3)
    >>> trainer = Trainer(StandardSAE(32, 64), data.activations).run()
    >>> print(compare_with_truth(trainer.sae, data))
    """
    _check_share("found_above", found_above)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    if isinstance(sae, SparseAutoencoder):
        dictionary: Tensor = sae.W_dec
    elif isinstance(sae, tuple) and len(sae) == 2 and all(isinstance(part, Tensor) for part in sae):
        dictionary, codes = sae
        if codes.shape != (len(data), len(dictionary)):
            raise InputError(
                f"codes have shape {tuple(codes.shape)}, but a dictionary of {len(dictionary)} features has codes "
                f"({len(data)}, {len(dictionary)}) for these data"
            )
    else:
        raise InputTypeError(f"sae must be an SAE, or a tuple (dictionary, codes) of tensors, not {type(sae).__name__}")
    cosines = _cosines(dictionary, data.dictionary)
    match = _matched(cosines)
    firing = _Firing(match.matching, data.parents)
    for start in range(0, len(data), batch_size):
        rows = slice(start, start + batch_size)
        if isinstance(sae, SparseAutoencoder):
            learned = sae.encode(data.activations[rows].to(device=sae.W_enc.device, dtype=sae.W_enc.dtype))
        else:
            learned = codes[rows]
        if not torch.isfinite(learned).all():
            raise InputError("the codes hold NaN or infinite values")
        firing.add_batch((learned > 0).cpu(), data.codes[rows] > 0)
    return TruthReport(
        found=float((match.similarity > found_above).double().mean()),
        matched_cosine=match.mean,
        mmcs=float(cosines.amax(dim=1).mean()),
        uniqueness=len(set(cosines.argmax(dim=0).tolist())) / len(dictionary),
        **firing.compute(),
        match=match,
    )


class _Firing:
    """Counts of inputs, from which detection and absorption follow."""

    def __init__(self, matching: Tensor, parents: Tensor) -> None:
        """Take the learned feature of each true one and its parent, both ``(n_features,)``, -1 for none."""
        self._matching, self._has_learned = matching.clamp(min=0), matching >= 0
        self._children = ((parents >= 0) & self._has_learned[parents]).nonzero().flatten()
        self._parents = parents[self._children]
        self._with_children = torch.tensor(sorted(set(self._parents.tolist())), dtype=torch.int64)
        self._true, self._learned, self._both = (torch.zeros(len(matching), dtype=torch.int64) for _ in range(3))
        self._told = self._absorbed = self._alone = self._missed = 0

    def add_batch(self, learned: Tensor, true: Tensor) -> None:
        """Take in what is on: learned features, ``(batch, d_sae)``, and true ones, ``(batch, n_features)``, boolean."""
        on = learned[:, self._matching] & self._has_learned  # the learned feature of each true one
        self._true += true.sum(dim=0)
        self._learned += on.sum(dim=0)
        self._both += (on & true).sum(dim=0)
        child = true[:, self._children] & true[:, self._parents]
        told = child & on[:, self._children]
        self._told += int(told.sum())
        self._absorbed += int((told & ~on[:, self._parents]).sum())
        n_children = torch.zeros(true.shape, dtype=torch.int32).index_add_(1, self._parents, child.int())
        alone = (true & (n_children == 0))[:, self._with_children]
        self._alone += int(alone.sum())
        self._missed += int((alone & ~on[:, self._with_children]).sum())

    def compute(self) -> dict[str, float]:
        true, learned, both = (counts[self._true > 0].double() for counts in (self._true, self._learned, self._both))
        return {
            "precision": float((both / learned.clamp(min=1)).mean()),
            "recall": float((both / true).mean()),
            "f1": float((2 * both / (true + learned)).mean()),
            "absorption": self._absorbed / self._told if self._told else math.nan,
            "missed_alone": self._missed / self._alone if self._alone else math.nan,
        }


class DictionaryStability(NamedTuple):
    """What `dictionary_stability` returns: how alike several dictionaries are."""

    matched_cosine: float
    """Mean over all pairs of dictionaries of the mean cosine of matched features."""
    shared: float
    """Mean over all pairs of the share of features whose matched cosine is above ``shared_above``."""
    pairs: "pd.DataFrame"
    """A row for each pair: ``first`` and ``second``, its places in the sequence, with its ``matched_cosine`` and
    ``shared``."""


def dictionary_stability(dictionaries: Sequence[Tensor], *, shared_above: float = 0.7) -> DictionaryStability:
    """How much of a dictionary comes back with another seed: the features of each pair, matched one to one.

    Paulo and Belrose 2025 (arXiv 2501.16615) match the features of two seeds one to one and count those above a cosine
    of 0.7 as shared; they compare encoders as well, this function decoders only. A stable feature need not be true, but
    a feature that only one seed has says little about the data.

    Parameters
    ----------
    dictionaries
        At least two, ``(d_sae, d_in)`` each and of one shape: ``[sae.W_dec for sae in saes]``. Rows may have any norm.
        Dead features count: they stay near their random start, and lower the result.
    shared_above
        The matched cosine above which a feature counts as shared by a pair, in [0, 1).

    Raises
    ------
    ValueError
        Fewer than two dictionaries, of different shapes, or unfit for `matched_cosine_similarity`.

    Examples
    --------
    >>> dictionary_stability([sae.W_dec for sae in saes]).shared
    """
    import pandas as pd

    _check_share("shared_above", shared_above)
    if len(dictionaries) < 2:
        raise InputError(f"stability takes at least two dictionaries, not {len(dictionaries)}; train another seed")
    shapes = [tuple(dictionary.shape) for dictionary in dictionaries]
    if len(set(shapes)) > 1:
        raise InputError(f"dictionaries must have one shape, not {', '.join(map(str, dict.fromkeys(shapes)))}")
    pairs = []
    for first, second in itertools.combinations(range(len(dictionaries)), 2):
        match = matched_cosine_similarity(dictionaries[first], dictionaries[second])
        shared = float((match.similarity > shared_above).double().mean())
        pairs.append({"first": first, "second": second, "matched_cosine": match.mean, "shared": shared})
    table = pd.DataFrame(pairs)
    return DictionaryStability(float(table.matched_cosine.mean()), float(table.shared.mean()), table)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"{name} must lie in [0, 1), not {value}")

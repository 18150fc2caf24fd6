"""What `ProbeExplorer` looks up: probes of the same texts, by layer, L1 coefficient and part held out."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import saelab
from saelab.data.batches import fingerprint
from saelab.data.labelled import LabelledSet, LabelledSplit, labelled_snippets
from saelab.errors import InputError
from saelab.evaluation.comparisons import with_interval
from saelab.evaluation.probing import ProbeReport, pool_reports, principal_components, probe
from saelab.files.tensor_files import read_tensors, write_tensors
from saelab.sae.base import SparseAutoencoder, TrainedOn
from saelab.sae.elementwise import elementwise
from saelab.sae.thresholds import Gates
from saelab_widgets.materials import language_model

if TYPE_CHECKING:
    import pandas as pd

REPRESENTATIONS = ("activations", "codes", "pca")
STRATIFIED = "stratified"
EACH_BLOCK = "each block"
"""Each block held out in turn, and all their test texts together."""
C = 0.01
"""Of every probe: one strength of penalty for all, so that what differs is the representation."""
COLUMNS = (
    "train_accuracy",
    "train_low",
    "train_high",
    "test_accuracy",
    "test_low",
    "test_high",
    "n_active",
    "l0",
    "C",
)


class Probed(NamedTuple):
    """A probe, and the rows of the whole set that it was tested on."""

    report: ProbeReport
    rows: NDArray[np.intp]

    def numbers(self, l0: float) -> list[float]:
        """In the order of `COLUMNS`; ``l0`` is that of codes, else NaN."""
        known = {**self.report.as_dict(), "l0": l0}
        return [known[name] for name in COLUMNS]

    def wrong(self, n_rows: int) -> NDArray[np.uint8]:
        """One bit for each row of the whole set, the first row in the lowest bit: set where it is got wrong."""
        return bits(self.rows[~self.report.test_correct], n_rows)


class Results(NamedTuple):
    """Of one layer: the axes are L1 coefficients, parts, `REPRESENTATIONS` and controls, and `COLUMNS` or bytes."""

    numbers: NDArray[np.float32]
    wrong: NDArray[np.uint8]


def bits(rows: NDArray[np.intp], n_rows: int) -> NDArray[np.uint8]:
    """``n_rows`` bits in whole bytes, those of ``rows`` set."""
    chosen = np.zeros(n_rows, dtype=bool)
    chosen[rows] = True
    return np.packbits(chosen, bitorder="little")


def rows_of(mask: bytes, n_rows: int) -> NDArray[np.intp]:
    """The rows that `bits` has set."""
    return np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=n_rows, bitorder="little").nonzero()[0]


def parts_of(data: LabelledSet) -> tuple[str, ...]:
    """By name, the ways in which test texts can be held out.

    Raises
    ------
    ValueError
        A block is called like one of the other two ways.
    """
    blocks = list(dict.fromkeys(data.blocks.tolist()))
    if taken := {STRATIFIED, EACH_BLOCK}.intersection(blocks):
        raise InputError(f"a block of the texts is called {taken.pop()!r}, which here means another part; rename it")
    return (STRATIFIED, EACH_BLOCK, *blocks) if len(blocks) > 1 else (STRATIFIED,)


def splits_of(data: LabelledSet, part: str) -> list[LabelledSplit]:
    """The splits whose test texts are ``part``: one, or one for each block."""
    if part == STRATIFIED:
        return [data.split()]
    by_block = data.by_block()
    return list(by_block.values()) if part == EACH_BLOCK else [by_block[part]]


def tested_rows(data: LabelledSet, part: str) -> NDArray[np.intp]:
    return np.concatenate([split.test.rows for split in splits_of(data, part)])


def probe_part(data: LabelledSet, part: str, n_components: int | None = None) -> Probed:
    """`saelab.probe` with one part held out."""
    return _pooled([_probed(split, n_components) for split in splits_of(data, part)])


class LiveProbes:
    """`probe_part` of one part, over and over: its splits and their principal components are found once."""

    def __init__(self, data: LabelledSet, part: str) -> None:
        self._splits = splits_of(data, part)
        self._components = [principal_components(*split) for split in self._splits]

    def of_codes(self, codes: LabelledSet) -> Probed:
        """Of codes of the same texts, in the same order."""
        return self._pooled(LabelledSplit(*(one._replace(x=codes.x[one.rows]) for one in s)) for s in self._splits)

    def of_pca(self, n_components: int) -> Probed:
        if n_components == 0:
            return _pooled([_probed(split, 0) for split in self._splits])
        first = [LabelledSplit(*(one._replace(x=one.x[:, :n_components]) for one in s)) for s in self._components]
        return self._pooled(first, standardize=False)

    @staticmethod
    def _pooled(splits: Iterable[LabelledSplit], standardize: bool = True) -> Probed:
        return _pooled([Probed(probe(*split, C=C, standardize=standardize), split.test.rows) for split in splits])


class LiveCodes:
    """`codes_of` at one gate threshold after the other: the encoder runs once, and features that are off are left out.

    Fresh memory is what would take most of the time: a tenth of it is asked for.
    """

    def __init__(self, data: LabelledSet, sae: SparseAutoencoder) -> None:
        self._data, self._sae = data, elementwise(sae, "a probe at another threshold")
        if data.store is not None:  # codes of tokens, then averaged
            return
        with torch.no_grad():
            gates = Gates(self._sae, data.x.to(sae.W_enc))
        # Feature by feature, since some are taken and most are not.
        self._pi_gate, self._magnitude = (one.T.contiguous() for one in (gates.pi_gate, gates.magnitude()))
        self._on_below = self._pi_gate.where(self._magnitude > 0, -math.inf).amax(dim=1)

    def at(self, gate_threshold: float) -> tuple[LabelledSet, int, float]:
        if self._data.store is not None:
            self._sae.gate_threshold = gate_threshold
            return codes_of(self._data, self._sae)
        on = (self._on_below > gate_threshold).nonzero()[:, 0]
        kept = on if len(on) else on.new_zeros(1)  # a probe takes a column at least
        codes = self._sae.codes_at(gate_threshold, self._pi_gate[kept], self._magnitude[kept]).T
        l0 = int((codes > 0).sum()) / len(codes)
        return replace(self._data, x=codes.to(self._data.x.device).to(self._data.x)), len(on), l0


def probe_parts(data: LabelledSet, n_components: int | None = None) -> dict[str, Probed]:
    """`probe_part` of every part; each block's fit serves twice."""
    first, *others = parts_of(data)
    probed = {first: probe_part(data, first, n_components)}
    if others:
        by_block = {name: _probed(split, n_components) for name, split in data.by_block().items()}
        probed |= {EACH_BLOCK: _pooled(list(by_block.values())), **by_block}
    return probed


def probe_layer(
    data: LabelledSet, saes: Iterable[Sequence[SparseAutoencoder]], advance: Callable[[], object] = lambda: None
) -> Results:
    """Probes of activations, of the codes of each of ``saes``, and of a PCA to as many dimensions as it has on.

    Each comes with its controls behind it, of which the codes are probed, too. ``advance`` is called after each SAE.
    """
    raw = probe_parts(data)
    numbers, wrong = [], []
    for sae, *controls in saes:
        codes, n_active, l0 = codes_of(data, sae)
        probed = [(raw, math.nan), (probe_parts(codes), l0), (probe_parts(data, n_active), math.nan)]
        advance()
        for control in controls:
            codes, _, l0 = codes_of(data, control)
            probed.append((probe_parts(codes), l0))
            advance()
        numbers.append([[by[part].numbers(l0) for by, l0 in probed] for part in parts_of(data)])
        wrong.append([[by[part].wrong(len(data.x)) for by, _ in probed] for part in parts_of(data)])
    return Results(np.array(numbers, dtype=np.float32), np.array(wrong))


def over_seeds(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over the first axis, that of seeds; the last one is `COLUMNS`.

    Of several seeds, an interval is that of the mean over seeds (`saelab.summarize`), not that of the texts.
    """
    means: NDArray[np.float64] = numbers.mean(axis=0, dtype=np.float64)
    if len(numbers) == 1:
        return means.astype(np.float32)
    for part in ("train", "test"):
        found = with_interval("", numbers[..., COLUMNS.index(f"{part}_accuracy")].astype(np.float64), 0.95)
        for limit in ("_low", "_high"):
            means[..., COLUMNS.index(f"{part}{limit}")] = found[limit]
    return means.astype(np.float32)


def codes_of(data: LabelledSet, sae: SparseAutoencoder) -> tuple[LabelledSet, int, float]:
    """The texts' codes, how many features are on for any text, and how many for a text, on average."""
    codes = data.encoded(sae)
    on = codes.x > 0
    return codes, int(on.any(dim=0).sum()), float(on.sum(dim=1).double().mean())


def kept_results(
    folder: Path,
    data: LabelledSet,
    paths: Sequence[str],
    layer: int,
    advance: Callable[[], object] = lambda: None,
) -> Results:
    """`probe_layer` of the SAEs in files that `saelab.sweep` has named after all that went into them.

    Kept in ``folder`` under a name made of these names and of the texts' content.
    """
    groups = [data.labels.tolist(), data.blocks.tolist(), data.strata.tolist()]
    path = (
        folder / f"probes-layer{layer}-{_digest([Path(path).stem for path in paths], fingerprint(data.x), groups, C)}"
    )
    path = path.with_name(f"{path.name}.safetensors")
    if path.exists():
        tensors, _ = read_tensors(path)
        for _ in paths:
            advance()
        return Results(tensors["numbers"].numpy(), tensors["wrong"].numpy())
    results = probe_layer(data, ([saelab.load(path)] for path in paths), advance)
    write_tensors(path, {name: torch.from_numpy(array) for name, array in results._asdict().items()}, {})
    return results


def snippets_at_layers(
    trained_on: Mapping[int, TrainedOn], snippets: "pd.DataFrame | None" = None, folder: Path | None = None
) -> dict[int, LabelledSet]:
    """`saelab.sentiment_sets` at the hooks where the SAEs of each layer were trained.

    The activations are kept in ``folder``, where one is given.

    Raises
    ------
    ValueError
        SAEs of several models, or two layers with one hook; like `saelab.sentiment_sets`.
    """
    frame = saelab.load_sentiment() if snippets is None else snippets
    models = {place.model_name for place in trained_on.values()}
    scales = {place.hook: place.scale for place in trained_on.values()}
    if len(models) > 1 or len(scales) < len(trained_on):
        places = ", ".join(f"{layer}: {place.model_name} at {place.hook}" for layer, place in trained_on.items())
        raise InputError(f"the layers must be hooks of one model, each once, not {places}")
    (model_name,) = models
    path = None
    if folder is not None:
        path = folder / f"snippets-{_digest(model_name, scales, frame.to_csv(index=False))}.safetensors"
    if path is not None and path.exists():
        by_hook = {hook: labelled_snippets(frame, x) for hook, x in read_tensors(path)[0].items()}
    else:
        by_hook = saelab.sentiment_sets(language_model(model_name), list(scales), scales=scales, snippets=frame)
        if path is not None:
            write_tensors(path, {hook: data.x for hook, data in by_hook.items()}, {})
    return {layer: by_hook[place.hook] for layer, place in trained_on.items()}


def _probed(split: LabelledSplit, n_components: int | None) -> Probed:
    return Probed(probe(*split, C=C, n_components=n_components), split.test.rows)


def _pooled(probed: Sequence[Probed]) -> Probed:
    if len(probed) == 1:
        return probed[0]
    return Probed(pool_reports([one.report for one in probed]), np.concatenate([one.rows for one in probed]))


def _digest(*content: object) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()

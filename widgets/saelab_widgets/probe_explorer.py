"""`ProbeExplorer`: where a probe reads a label, how much of it is left in codes, and which texts it gets wrong."""

import copy
import functools
import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import traitlets
from numpy.typing import NDArray
from torch import Tensor

import saelab
from saelab.data.labelled import LabelledSet, LabelledSplit
from saelab.data.language_models import EMBEDDED_MODEL
from saelab.errors import InputError, InputTypeError
from saelab.evaluation.controls import NO_CONTROL, label_of_control
from saelab.sae.base import L1_COEFFICIENT, SparseAutoencoder, TrainedOn
from saelab.sae.elementwise import GATE_THRESHOLD, ElementwiseSAE
from saelab_widgets import probe_results
from saelab_widgets.background import LatestTask
from saelab_widgets.instrument import STATIC, Instrument
from saelab_widgets.materials import cache_folder, language_model, trained_at
from saelab_widgets.pictures import as_png
from saelab_widgets.probe_results import COLUMNS, EACH_BLOCK, REPRESENTATIONS, STRATIFIED, C, Results
from saelab_widgets.quantities import chart, control_series, knob, other_line
from saelab_widgets.sources import HasSAE, Source, sae_of
from saelab_widgets.specs import ChartSpec, KnobSpec, SeriesSpec

if TYPE_CHECKING:
    import pandas as pd
    from tqdm import tqdm

N_TEST_PER_LAYER = 2048
"""Rows at the end of each layer's default activations, on which the SAEs are not trained."""
TRAINING = saelab.TrainingConfig(batch_size=512, lr=2e-3, resample_every=0)
"""Of the default SAEs, short: in 300 steps at this learning rate the features that cost too much are off."""
LABELS = {0: "negative", 1: "positive"}
_REPRESENTATION_LABELS = {"activations": "activations", "codes": "codes", "pca": "PCA"}
_PART_LABELS = {STRATIFIED: "a quarter, stratified", EACH_BLOCK: "each block in turn"}
_FIGURE_NAMES = {"activations": "activations", "codes": "codes", "pca": "PCA, k of codes"}
"""As `saelab.figures.probe_by_layer` takes them."""
_KEYS = ["layer", "l1_coefficient", "control", "seed"]
"""Columns that tell the SAEs of a table apart."""


class ProbeExplorer(Instrument, HasSAE):
    """A linear probe at each layer, on activations, on an SAE's codes, and on a PCA to as many dimensions.

    It shows training and test accuracies with their 95 % intervals, how many features are on at all, and the texts that
    the chosen probe gets wrong. All is looked up, but for a gate threshold other than 0: the chosen layer is then
    encoded and both its probes are fitted anew. Every probe is a standardised logistic regression with C = 0.01.

    Every control is a trait: ``explorer.layer = 3`` in a cell and the radio button do the same thing. Other widgets
    that take an SAE follow `sae`, that of the chosen layer and L1 coefficient.

    Of several seeds it shows means, with the 95 % intervals of the means over seeds, on these same texts. The texts
    that are listed and `sae` are those of the first seed. Codes of controls are further representations, in grey.

    Parameters
    ----------
    saes
        For each layer (a whole number), a mapping from L1 coefficients to SAEs, the same coefficients for each; an SAE,
        its file, or a widget that has one. Copies are taken, at gate threshold 0. Or a table of files: `saelab.sweep`
        at each layer, with the further column ``layer``; it may have several seeds and controls, the same for each
        layer and L1 coefficient. By default gated SAEs at the layers of the embedded model; they are trained the first
        time, and then kept in the user's cache.
    data
        For each layer a `saelab.LabelledSet` of the same texts, in the scale that its SAEs were trained on; needs
        ``saes``. Or a DataFrame with the columns ``text``, ``label``, ``hard`` and ``block``, whose texts are then read
        at the hooks of the SAEs. By default the sentiment set, there too.
    layers
        Which layers to show; by default those of ``saes``, else 0 to 3.
    l1_coefficients, d_sae, n_tokens, n_steps
        Of the default SAEs: they are trained on ``n_tokens`` activations, 512 a step.
    labels
        What each label is called; by default 0 is negative and 1 positive, and any other its own name.

    Raises
    ------
    TypeError, ValueError
        Layers without SAEs or texts, of other widths, other texts, or other L1 coefficients than the first one's; a
        table that lacks a column or an SAE, or has one twice; what `saelab.probe` cannot take; SAEs that do not know
        what they were trained on, with nothing given to show.
    FileNotFoundError
        A file that the table names is gone.

    Examples
    --------
    >>> from saelab_widgets import ProbeExplorer
    >>> ProbeExplorer()
    """

    _esm = STATIC / "probe_explorer.js"
    _css = STATIC / "probe_explorer.css"

    layer = traitlets.Int(0).tag(sync=True)
    representation = traitlets.Unicode("codes").tag(sync=True)
    """``"activations"``, ``"codes"``, ``"pca"``, or codes of a control, such as ``"codes, frozen_decoder"``."""
    l1_coefficient = traitlets.Float(0.0).tag(sync=True)
    gate_threshold = traitlets.Float(0.0).tag(sync=True)
    part = traitlets.Unicode(STRATIFIED).tag(sync=True)
    """Which texts are held out: ``"stratified"``, ``"each block"``, or a block's name."""
    shown = traitlets.Enum(("wrong", "right"), "wrong").tag(sync=True)
    """Which test texts the list has."""
    options = traitlets.Dict().tag(sync=True)
    knobs = traitlets.List(traitlets.Dict()).tag(sync=True)
    charts = traitlets.List(traitlets.Dict()).tag(sync=True)
    columns = traitlets.List(traitlets.Unicode(), list(COLUMNS)).tag(sync=True)
    controls = traitlets.List(traitlets.Dict()).tag(sync=True)
    """How the codes of each control are drawn; these are the last representations."""
    seeds = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """Of the SAEs in a table, else none."""
    texts = traitlets.List(traitlets.Dict()).tag(sync=True)
    """One for each row of the set: ``{"text": ..., "label": ..., "block": ..., "hard": ...}``."""
    numbers = traitlets.Bytes(b"").tag(sync=True)
    """Float32, layers by L1 coefficients by parts by representations by `columns`: means over `seeds`."""
    wrong = traitlets.Bytes(b"").tag(sync=True)
    """Bits: for each of the same but the columns, which rows of the set the probe gets wrong, in whole bytes; of the
    first seed."""
    tested = traitlets.Bytes(b"").tag(sync=True)
    """Bits: for each part, which rows are its test texts."""
    live = traitlets.Bytes(b"").tag(sync=True)
    """Float32: places of layer, L1 coefficient and part, the gate threshold, and the `columns` of codes and PCA there;
    empty at gate threshold 0."""
    live_wrong = traitlets.Bytes(b"").tag(sync=True)
    """Bits, of the two probes in `live`; of the first seed."""

    def __init__(
        self,
        saes: "Mapping[int, Mapping[float, Source]] | pd.DataFrame | None" = None,
        data: "Mapping[int, LabelledSet] | pd.DataFrame | None" = None,
        *,
        layers: Sequence[int] | None = None,
        l1_coefficients: Sequence[float] = (1, 2, 4),
        d_sae: int = 512,
        n_tokens: int = 40_000,
        n_steps: int = 300,
        labels: Mapping[int, str] = LABELS,
    ) -> None:
        snippets = _snippets_of(data, has_saes=saes is not None)
        self._test_x: dict[int, Tensor] = {}
        if saes is None:
            layers = range(4) if layers is None else layers
            default = _trained(tuple(layers), tuple(map(float, l1_coefficients)), d_sae, n_tokens, n_steps)
            self._test_x = {layer: one.test_x for layer, one in default.items()}
            trained = {
                layer: {l1: _copy(saelab.load(path)) for l1, path in one.paths.items()}
                for layer, one in default.items()
            }
            given = _Given([trained])
            places = {layer: one.trained_on for layer, one in default.items()}
            sets = probe_results.snippets_at_layers(places, snippets, _folder())
            results = [_kept(default, sets)]
        else:
            given = _given(saes, layers)
            sets = _sets_of(given.trained, data, snippets)
            results = _computed(given, sets)
        self._data = sets
        self._given = given
        self._layers = list(given.trained[0])
        self._l1s = list(given.trained[0][self._layers[0]])
        self._representations = [*REPRESENTATIONS, *(f"codes, {name}" for name in given.controls)]
        first = sets[self._layers[0]]
        self._parts = list(probe_results.parts_of(first))
        self._tested = {part: probe_results.tested_rows(first, part) for part in self._parts}
        self._numbers = np.array([[one.numbers for one in of_seed] for of_seed in results])
        self._wrong = np.array([[one.wrong for one in of_seed] for of_seed in results])
        self._means = probe_results.over_seeds(self._numbers)
        if len(results) > 1:  # activations depend on no seed, so there is no interval over these
            for limit in ("train_low", "train_high", "test_low", "test_high"):
                self._means[..., 0, COLUMNS.index(limit)] = math.nan
        # Of what was asked for last; and no more, since each holds as much as the texts.
        self._live_codes = functools.lru_cache(maxsize=len(results))(
            lambda seed, layer, l1: probe_results.LiveCodes(sets[layer], copy.deepcopy(given.trained[seed][layer][l1]))
        )
        self._live_probes = functools.lru_cache(maxsize=1)(
            lambda layer, part: probe_results.LiveProbes(sets[layer], part)
        )
        self._task = LatestTask(self._show_error)
        controls = _controls(given.controls)
        super().__init__(
            layer=1 if 1 in self._layers else self._layers[0],
            l1_coefficient=self._l1s[-1],
            options={
                "layer": [{"value": str(layer), "label": str(layer)} for layer in self._layers],
                "representation": [
                    *({"value": name, "label": label} for name, label in _REPRESENTATION_LABELS.items()),
                    *({"value": one["value"], "label": one["label"]} for one in controls),
                ],
                "part": [{"value": name, "label": _PART_LABELS.get(name, name)} for name in self._parts],
                "shown": [{"value": name, "label": name} for name in ("wrong", "right")],
            },
            knobs=_knobs(self._l1s),
            charts=_charts(first, self._means, len(results)),
            controls=controls,
            seeds=given.seeds,
            texts=_texts(first, labels),
            numbers=self._means.tobytes(),
            wrong=self._wrong[0].tobytes(),
            tested=b"".join(probe_results.bits(rows, len(first.x)).tobytes() for rows in self._tested.values()),
            status=f"Looked up: probes with C = {C:g}, {len(first.x):,} texts. Move a control.",
        )
        self.observe(self._on_choice, ["layer", "l1_coefficient", "part", "gate_threshold"])

    @property
    def sae(self) -> SparseAutoencoder:
        """The SAE of the chosen layer and L1 coefficient, of the first seed, at the chosen gate threshold."""
        sae = self._given.trained[0][self.layer][self.l1_coefficient]
        if isinstance(sae, ElementwiseSAE):
            sae.gate_threshold = self.gate_threshold
        return sae

    @property
    def test_x(self) -> Tensor | None:
        return self._test_x.get(self.layer)

    @property
    def sentiment(self) -> LabelledSplit | None:
        return self._data[self.layer].split()

    def frame(self) -> "pd.DataFrame":
        """All that is looked up, at gate threshold 0.

        A row for each ``layer``, ``l1_coefficient``, ``representation`` and ``held_out`` part, with the `columns` and
        ``n_wrong`` of ``n_test`` texts. The activations do not depend on the L1 coefficient, and are repeated. Where
        the SAEs came in a table, ``control`` and ``seed`` say whose codes these are: `saelab.summarize` takes means
        over seeds, with ``by=["layer", "l1_coefficient", "representation", "control", "held_out"]``.
        """
        import pandas as pd

        tables = []
        for seed, (numbers, wrong) in enumerate(zip(self._numbers, self._wrong, strict=True)):
            table = self._table(numbers).astype({"n_active": int})
            if self.seeds:
                table.insert(4, "seed", self._given.seed_values[seed])
            else:
                table = table.drop(columns="control")
            # In the order of `_table`.
            table["n_wrong"] = np.bitwise_count(wrong).sum(axis=-1, dtype=int).swapaxes(2, 3).ravel()
            table["n_test"] = [len(self._tested[part]) for part in table["held_out"]]
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def _table(self, numbers: NDArray[np.float32]) -> "pd.DataFrame":
        """Layers by L1 coefficients by parts by representations by `COLUMNS`, as a table."""
        import pandas as pd

        whose = [*((name, NO_CONTROL) for name in REPRESENTATIONS), *(("codes", name) for name in self._given.controls)]
        head = [
            {"layer": layer, "l1_coefficient": l1, "representation": name, "control": control, "held_out": part}
            for layer, l1, (name, control), part in itertools.product(self._layers, self._l1s, whose, self._parts)
        ]
        values = numbers.swapaxes(2, 3).reshape(len(head), len(COLUMNS)).astype(np.float64)
        return pd.DataFrame(head).join(pd.DataFrame(values, columns=list(COLUMNS)))

    def wrong_texts(self) -> "pd.DataFrame":
        """The test texts that the chosen probe gets wrong, with the columns of `texts`, by row of the set."""
        import pandas as pd

        rows = probe_results.rows_of(self._chosen_wrong(), len(self.texts))
        return pd.DataFrame(self.texts).iloc[rows]

    def wait(self, timeout: float = 60.0) -> None:
        """Block the cell until what the gate threshold asks for has been computed. Raises TimeoutError."""
        self._task.wait(timeout)

    def __repr__(self) -> str:
        return f"ProbeExplorer(layer {self.layer}, {self.representation}, L1 {self.l1_coefficient:g})"

    def _picture(self) -> bytes:
        from saelab.figures import probe_by_layer

        table = self._table(self._means)
        table = table[(table.l1_coefficient == self.l1_coefficient) & (table.held_out == self.part)]
        if self._is_live():
            for name, numbers in zip(REPRESENTATIONS[1:], self._live_numbers(), strict=True):
                here = (table.layer == self.layer) & (table.representation == name) & (table.control == NO_CONTROL)
                table.loc[here, list(COLUMNS)] = numbers
        label = next(one["label"] for one in self.options["representation"] if one["value"] == self.representation)
        of_seeds = f"mean of {len(self.seeds)} seeds, " if len(self.seeds) > 1 else ""
        title = (
            f"L1 {self.l1_coefficient:g}, {of_seeds}held out: {_PART_LABELS.get(self.part, self.part)}."
            f"{chr(10) if self.seeds else ' '}At layer {self.layer}, {label}: {self._score()}"
        )
        columns = ["layer", "representation", "control", *COLUMNS]
        table = table[columns].replace({"representation": _FIGURE_NAMES})
        figure = probe_by_layer(table, title=title, size=(8.5, 3.9))
        figure.set_dpi(80)
        return as_png(figure)

    def _score(self) -> str:
        n_wrong = len(probe_results.rows_of(self._chosen_wrong(), len(self.texts)))
        known = [f"gate threshold {self.gate_threshold:g}"] if self._is_live() else []
        if len(self.seeds) > 1 and self.representation != "activations":
            known.append(f"seed {self.seeds[0]}")
        of = f" ({', '.join(known)})" if known else ""
        return f"{n_wrong:,} of {len(self._tested[self.part]):,} wrong{of}"

    def _chosen(self) -> tuple[int, int, int]:
        return (self._layers.index(self.layer), self._l1s.index(self.l1_coefficient), self._parts.index(self.part))

    def _is_live(self) -> bool:
        """Whether what `live` holds is of the choice as it stands."""
        live = np.frombuffer(self.live, dtype=np.float32)[:4]
        return np.array_equal(live, np.array((*self._chosen(), self.gate_threshold), dtype=np.float32))

    def _live_numbers(self) -> NDArray[np.float32]:
        """``(2, len(COLUMNS))``: of codes and PCA."""
        return np.frombuffer(self.live, dtype=np.float32)[4:].reshape(2, -1)

    def _chosen_wrong(self) -> bytes:
        place = self._representations.index(self.representation)
        if self.representation in REPRESENTATIONS[1:] and self._is_live():  # the others do not depend on the gate
            n_bytes = len(self.live_wrong) // 2
            return self.live_wrong[(place - 1) * n_bytes : place * n_bytes]
        mask: bytes = self._wrong[(0, *self._chosen(), place)].tobytes()
        return mask

    @traitlets.validate("layer", "l1_coefficient", "part", "representation")
    def _is_there(self, proposal: dict[str, Any]) -> Any:
        name = proposal["trait"].name
        choices: dict[str, list[Any]] = {
            "layer": self._layers,
            "l1_coefficient": self._l1s,
            "part": self._parts,
            "representation": self._representations,
        }
        there = choices[name]
        if proposal["value"] not in there:
            raise traitlets.TraitError(
                f"{name} must be one of {', '.join(map(repr, there))}, not {proposal['value']!r}"
            )
        return proposal["value"]

    def _on_choice(self, change: dict[str, Any]) -> None:
        with self._handling():
            self.error = ""
            if self.gate_threshold == 0:
                self._task.submit(self._look_up)  # in turn, so that no job that still runs comes after it
            else:
                # The page says by itself that it waits: a message more would come before the answer, and delay it.
                self._task.submit(partial(self._fit_anew, self.gate_threshold, self._chosen()))
            if change["name"] != "part":
                self._sae_has_changed()

    # In the task's thread

    def _look_up(self) -> None:
        with self.hold_sync():
            self.live, self.live_wrong = b"", b""
            self.status = f"Looked up: probes with C = {C:g}, {len(self.texts):,} texts."

    def _fit_anew(self, gate_threshold: float, place: tuple[int, int, int]) -> None:
        start = time.perf_counter()
        layer, l1, part = self._layers[place[0]], self._l1s[place[1]], self._parts[place[2]]
        probes = self._live_probes(layer, part)
        numbers, wrong = [], []
        for seed in range(len(self._given.trained)):
            codes, n_active, l0 = self._live_codes(seed, layer, l1).at(gate_threshold)
            on_codes = probes.of_codes(codes)
            if self._task.superseded:
                return
            on_pca = probes.of_pca(n_active)
            numbers.append([on_codes.numbers(l0), on_pca.numbers(math.nan)])
            wrong.append(b"".join(one.wrong(len(codes.x)).tobytes() for one in (on_codes, on_pca)))
        means = probe_results.over_seeds(np.array(numbers, dtype=np.float32))
        with self.hold_sync():
            self.live = np.array([*place, gate_threshold, *means.ravel()], dtype=np.float32).tobytes()
            self.live_wrong = wrong[0]
            seconds = time.perf_counter() - start
            self.status = f"At gate threshold {gate_threshold:g}: encoded and fitted anew in {seconds:.2f} s."


Trained = dict[int, dict[float, SparseAutoencoder]]
"""SAEs by layer and L1 coefficient."""


class _Given(NamedTuple):
    """The SAEs that are probed."""

    trained: list[Trained]
    """Of each seed."""
    controls: Mapping[str, Mapping[tuple[int, float, int], str]] = MappingProxyType({})
    """Files, by name of the control; then by layer, L1 coefficient, and place of the seed."""
    seed_values: Sequence[Any] = ()
    """As they are in the table, where there is one."""

    @property
    def seeds(self) -> list[str]:
        return [str(value) for value in self.seed_values]


class _Layer(NamedTuple):
    """What the default SAEs of one layer come from."""

    trained_on: TrainedOn
    test_x: Tensor
    paths: dict[float, str]


def _folder() -> Path:
    return cache_folder("probes", saelab.__version__)  # another version may have another model and other texts


@functools.lru_cache(maxsize=2)
def _trained(
    layers: tuple[int, ...], l1_coefficients: tuple[float, ...], d_sae: int, n_tokens: int, n_steps: int
) -> dict[int, _Layer]:
    """The default SAEs, trained where they are not in the cache."""
    if not layers or not l1_coefficients or n_tokens < 1:
        raise InputError(
            "layers and l1_coefficients need at least one each, and n_tokens must be at least 1, "
            f"not {list(layers)}, {list(l1_coefficients)} and {n_tokens}"
        )
    config = replace(TRAINING, n_steps=n_steps)
    hooks = {layer: f"blocks.{layer}.hook_resid_post" for layer in layers}
    name = f"activations-layers={','.join(map(str, layers))}-tokens={n_tokens}"
    stores = saelab.harvest_many(
        language_model(EMBEDDED_MODEL),
        list(hooks.values()),
        saelab.load_text(),
        n_tokens=n_tokens + N_TEST_PER_LAYER,
        store=_folder() / name,
        dtype=torch.float16,  # half the space, and far finer than what an SAE leaves unexplained
    )
    trained = {}
    for layer, hook in hooks.items():
        store = stores[hook]
        n_train = len(store) - N_TEST_PER_LAYER
        x, test_x = store.activations[:n_train], store.activations[n_train:]
        table = saelab.sweep(
            partial(saelab.GatedSAE, x.shape[1], d_sae),
            replace(store, activations=x),
            l1_coefficients,
            config=config,
            test=test_x,
            folder=_folder(),
        )
        paths = dict(zip(l1_coefficients, table.path, strict=True))
        trained[layer] = _Layer(store.trained_on, test_x, paths)
    return trained


def _kept(trained: Mapping[int, _Layer], data: Mapping[int, LabelledSet]) -> list[Results]:
    with _bar(sum(len(one.paths) for one in trained.values())) as bar:
        return [
            probe_results.kept_results(_folder(), data[layer], list(one.paths.values()), layer, bar.update)
            for layer, one in trained.items()
        ]


def _computed(given: _Given, data: Mapping[int, LabelledSet]) -> list[list[Results]]:
    """Of each seed, by layer."""
    n_saes = sum(len(by_l1) for trained in given.trained for by_l1 in trained.values())
    with _bar(n_saes * (1 + len(given.controls))) as bar:
        return [
            [
                probe_results.probe_layer(
                    data[layer],
                    # Controls are loaded one after the other, and not kept.
                    (
                        [sae, *(saelab.load(files[layer, l1, seed]) for files in given.controls.values())]
                        for l1, sae in by_l1.items()
                    ),
                    bar.update,
                )
                for layer, by_l1 in trained.items()
            ]
            for seed, trained in enumerate(given.trained)
        ]


def _bar(total: int) -> "tqdm[Any]":
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="probing", unit="SAE", leave=False)


def _copy(source: Source) -> SparseAutoencoder:
    sae = copy.deepcopy(sae_of(source))
    if isinstance(sae, ElementwiseSAE):
        sae.gate_threshold = 0.0
    return sae


def _given(saes: "Mapping[int, Mapping[float, Source]] | pd.DataFrame", layers: Sequence[int] | None) -> _Given:
    import pandas as pd

    if not isinstance(saes, pd.DataFrame):
        return _Given([_checked_saes(saes, layers)])
    if missing := [name for name in ("layer", "l1_coefficient", "path") if name not in saes]:
        raise InputError(
            f"the table of SAEs has no column {', '.join(missing)}; it has {', '.join(map(str, saes.columns))}. Give "
            "that of saelab.sweep at each layer: pd.concat([tables[layer].assign(layer=layer) for layer in tables])"
        )
    table = saes.assign(
        control=saes["control"].fillna(NO_CONTROL) if "control" in saes else NO_CONTROL,
        seed=saes.get("seed", 0),
    )
    for name in ("l1_coefficient", "seed"):
        if table[name].isna().any():
            raise InputError(f"{name} is missing in some rows of the table of SAEs; fill it in, or leave them out")
    if (repeated := table.duplicated(_KEYS)).any():
        said = ", ".join(f"{name} {table[repeated][name].iloc[0]}" for name in _KEYS)
        raise InputError(f"the table of SAEs has several of {said}; keep one")
    values = {name: table[name].drop_duplicates().tolist() for name in _KEYS}
    files = dict(zip(table[_KEYS].itertuples(index=False, name=None), table["path"], strict=True))
    for key in itertools.product(*values.values()):
        if key not in files:
            said = ", ".join(f"{name} {value}" for name, value in zip(_KEYS, key, strict=True))
            raise InputError(
                f"the table of SAEs has none of {said}; it needs one for each layer, L1 coefficient, control and seed"
            )
    if NO_CONTROL not in values["control"]:
        raise InputError("the table of SAEs has none that is no control; give those that the controls belong to, too")

    def of(control: str, seed: Any) -> dict[int, dict[float, Source]]:
        return {
            layer: {l1: files[layer, l1, control, seed] for l1 in values["l1_coefficient"]} for layer in values["layer"]
        }

    return _Given(
        [_checked_saes(of(NO_CONTROL, seed), layers) for seed in values["seed"]],
        {
            control: {
                (layer, float(l1), place): files[layer, l1, control, seed]
                for layer, l1, (place, seed) in itertools.product(
                    values["layer"], values["l1_coefficient"], enumerate(values["seed"])
                )
            }
            for control in values["control"]
            if control != NO_CONTROL
        },
        values["seed"],
    )


def _checked_saes(saes: Mapping[int, Mapping[float, Source]], layers: Sequence[int] | None) -> Trained:
    """Copies of the SAEs of ``layers``, by L1 coefficient, smallest first."""
    if not isinstance(saes, Mapping) or not all(isinstance(by_l1, Mapping) and by_l1 for by_l1 in saes.values()):
        raise InputTypeError(
            "saes must map each layer to a mapping from L1 coefficients to SAEs, such as {1: {4.0: sae}}"
        )
    chosen = list(saes if layers is None else layers)
    if not chosen or not set(chosen) <= set(saes):
        raise InputError(f"layers must be one or more of those of saes, {', '.join(map(str, saes))}, not {chosen}")
    grid = sorted(saes[chosen[0]])
    for layer in chosen:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise InputTypeError(f"layers must be whole numbers, not {layer!r}")
        if sorted(saes[layer]) != grid:
            raise InputError(
                f"layer {layer} has SAEs of the L1 coefficients {', '.join(map(str, sorted(saes[layer])))}, "
                f"layer {chosen[0]} of {', '.join(map(str, grid))}; give the same for each"
            )
    return {layer: {float(l1): _copy(saes[layer][l1]) for l1 in grid} for layer in chosen}


def _snippets_of(data: object, *, has_saes: bool) -> "pd.DataFrame | None":
    """``data`` where it is a table of texts. Raises where it is nothing that a probe could be shown on."""
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        return data
    if data is not None and not isinstance(data, Mapping):
        raise InputTypeError(
            f"data must map each layer to a LabelledSet, or be a DataFrame of texts, not {type(data).__name__}"
        )
    if data is not None and not has_saes:
        raise InputError(
            "data has activations in the scale of some SAEs: give these as saes, too; or give data as a DataFrame of "
            "texts, which are then read in the scale of the default SAEs"
        )
    return None


def _sets_of(trained: Sequence[Trained], data: object, snippets: "pd.DataFrame | None") -> dict[int, LabelledSet]:
    """The texts at each layer, checked against its SAEs, of every seed."""
    saes = {layer: [pair for of_seed in trained for pair in of_seed[layer].items()] for layer in trained[0]}
    if isinstance(data, Mapping):
        sets = {layer: data[layer] for layer in saes if isinstance(data.get(layer), LabelledSet)}
        if missing := [str(layer) for layer in saes if layer not in sets]:
            raise InputError(f"data has no LabelledSet of layer {', '.join(missing)}; give one for each layer of saes")
    else:
        places = {layer: {trained_at(sae) for _, sae in some} for layer, some in saes.items()}
        for layer, several in places.items():
            if len(several) > 1:
                raise InputError(f"the SAEs of layer {layer} were trained on several stores: {several}; give data")
        sets = probe_results.snippets_at_layers({layer: next(iter(one)) for layer, one in places.items()}, snippets)
    first_layer, first = next(iter(sets.items()))
    for layer, one in sets.items():
        same = (one.texts, first.texts), (one.labels.cpu().numpy(), first.labels.cpu().numpy())
        if not all(np.array_equal(a, b) for a, b in (*same, (one.blocks, first.blocks), (one.strata, first.strata))):
            raise InputError(f"data of layer {layer} has other texts, labels or blocks than layer {first_layer}")
        for l1, sae in saes[layer]:
            if sae.d_in != one.x.shape[1]:
                raise InputError(
                    f"data of layer {layer} has width {one.x.shape[1]}, its SAE at L1 {l1:g} takes {sae.d_in}; "
                    "take both from one hook"
                )
    return sets


def _texts(data: LabelledSet, labels: Mapping[int, str]) -> list[dict[str, Any]]:
    """What the page shows of each text. ``hard`` is false throughout where the strata do not say."""
    shown = zip(data.texts.tolist(), data.labels.tolist(), data.blocks.tolist(), data.strata.tolist(), strict=True)
    return [
        {"text": text, "label": labels.get(label, str(label)), "block": block, "hard": stratum == f"{label}True"}
        for text, label, block, stratum in shown
    ]


def _knobs(l1_coefficients: Sequence[float]) -> list[KnobSpec]:
    return [
        knob(
            L1_COEFFICIENT,
            help=f"Of the SAE whose codes are probed: {', '.join(f'{l1:g}' for l1 in l1_coefficients)}.",
            values=list(l1_coefficients),
            min=l1_coefficients[0],
            max=l1_coefficients[-1],
            default=l1_coefficients[-1],
        ),
        knob(GATE_THRESHOLD, help="Of the SAE at the chosen layer. The codes and both probes are computed anew."),
    ]


def _controls(names: Iterable[str]) -> list[SeriesSpec]:
    """What the trait ``controls`` holds; they look as in `saelab.figures.probe_by_layer`."""
    return [control_series(f"codes, {name}", f"codes, {label_of_control(name)}", name, "X") for name in names]


def _charts(data: LabelledSet, numbers: NDArray[np.float32], n_seeds: int) -> list[ChartSpec]:
    accuracies = numbers[..., :6]
    chance = float(np.unique(data.labels.cpu().numpy(), return_counts=True)[1].max() / len(data.labels))
    # One axis for all that can be chosen: what moves is the data.
    low, high = min(float(np.nanmin(accuracies)), chance), float(np.nanmax(accuracies))
    domain = [max(0.0, math.floor(20 * low - 0.2) / 20), min(1.0, math.ceil(20 * high + 0.2) / 20)]
    intervals = f"means of {n_seeds} seeds with their 95 % intervals" if n_seeds > 1 else "with 95 % intervals"
    return [
        chart(
            "probe_accuracy",
            label="Probe accuracy by layer",
            help=f"Filled: test texts, {intervals}; hollow: training texts. "
            f"PCA has as many dimensions as the SAE has features on. Logistic regression, C = {C:g}.",
            domain=domain,
            reference={"value": chance, "label": f"most frequent label {chance:.2f}"},
        ),
        chart("n_active", others=[other_line("l0", "L0: for a text, on average", "l0")]),
    ]

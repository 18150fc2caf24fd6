"""`GateExplorer`: what the gate of one feature does, and what gate thresholds do to the whole SAE."""

import copy
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets
from numpy.typing import NDArray
from torch import Tensor

from saelab.data.activations import ActivationStore
from saelab.data.labelled import LabelledActivations, LabelledSplit
from saelab.errors import InputError
from saelab.evaluation.probing import probe
from saelab.sae.base import SparseAutoencoder, check_activations
from saelab.sae.elementwise import GATE_THRESHOLD, ElementwiseSAE
from saelab.sae.thresholds import threshold_curves, with_thresholds
from saelab_widgets.background import LatestTask
from saelab_widgets.gate_snapshot import Snapshot
from saelab_widgets.instrument import STATIC, Instrument
from saelab_widgets.materials import N_TEST, default_sae, snippets_at, test_activations_at, trained_at
from saelab_widgets.pictures import INK, as_png, plain_axes
from saelab_widgets.quantities import COLORS, architecture_color, architecture_label, chart, knob
from saelab_widgets.sources import HasSAE, Source, follow, sae_of
from saelab_widgets.specs import ChartSpec, KnobSpec

if TYPE_CHECKING:
    import pandas as pd

THRESHOLDS = tuple(round(-1 + 0.05 * step, 2) for step in range(101))
"""Those at which the whole SAE is measured: every position of the slider."""
NATURALS = tuple(round(0.1 * step, 1) for step in range(11))
PROBE_EVERY = 5
"""The probe is fitted at every fifth threshold: a fit costs as much as all of a curve."""
COLUMNS = ("l0", "gamma", "fvu", "probe_accuracy")
PROBED = COLUMNS.index("probe_accuracy")
N_SHIPPED = 24
"""Features that can be looked at with no kernel."""
CALM_SECONDS = 0.3
"""Without a change of the SAE that is followed, before work begins that only pays where it stays."""
FOLLOW_SECONDS = 1.0
"""Between two looks at an SAE that is training, at least; and four times what the look itself takes."""


class GateExplorer(Instrument, HasSAE):
    """One feature's gate on held-out tokens, and the whole SAE at every gate threshold.

    Moving a threshold here never writes to the SAE; `apply` gives a copy with everything as it stands here. Every
    control is a trait: ``explorer.gate_threshold = 0.5`` in a cell and the slider do the same thing.

    Parameters
    ----------
    sae
        An SAE, the path of its file, or a widget that has one, such as a `TrainingLab`, which is then followed: at
        most once a second while it trains. By default a gated SAE that is trained for some seconds.
    activations
        To look at the gate on: ``(n, d_in)`` in the SAE's scale, or an `ActivationStore`; of these, the last
        ``n_rows``. By default what the widget keeps out of training, or tokens harvested where the SAE was trained.
    sentiment
        Probe inputs at the same place with the same scale (`saelab.sentiment_set`). By default the widget's, or the
        sentiment set where ``activations`` is the default too, else there is no probe.
    feature
        The one to show first; by default one that is on for about 3 % of the tokens.
    n_rows
        Tokens, at most.

    Raises
    ------
    TypeError, ValueError
        An SAE without a gate threshold, or with untied encoders, whose magnitude is no function of its gate;
        activations of another width, empty, or with NaN; a probe of another width; no such feature; an SAE that does
        not know what it was trained on, where ``activations`` is not given.

    Examples
    --------
    >>> from saelab_widgets import GateExplorer
    >>> GateExplorer(sae, store)
    """

    _esm = STATIC / "gate_explorer.js"
    _css = STATIC / "gate_explorer.css"

    gate_threshold = traitlets.Float(0.0).tag(sync=True)
    """Of all features."""
    feature_threshold_offset = traitlets.Float(0.0).tag(sync=True)
    """What is added to it for the chosen feature alone."""
    natural = traitlets.Float(0.0, min=0.0, max=1.0).tag(sync=True)
    """How far magnitudes are moved from the learned shift, 0, to none, 1 (`saelab.threshold_curves`)."""
    feature = traitlets.Int(0, min=0).tag(sync=True)
    architecture = traitlets.Unicode().tag(sync=True)
    n_rows = traitlets.Int(0).tag(sync=True)
    """Tokens that are looked at."""
    thresholds = traitlets.List(traitlets.Float(), list(THRESHOLDS)).tag(sync=True)
    naturals = traitlets.List(traitlets.Float(), list(NATURALS)).tag(sync=True)
    columns = traitlets.List(traitlets.Unicode(), list(COLUMNS)).tag(sync=True)
    curves = traitlets.Bytes(b"").tag(sync=True)
    """float32, by natural, threshold and column; NaN is not computed yet. `frame` reads it."""
    densities = traitlets.Bytes(b"").tag(sync=True)
    """float32, ``(d_sae,)``: share of tokens for which each feature is on, the SAE as it is."""
    rows = traitlets.Bytes(b"").tag(sync=True)
    """The chosen feature on every token: float32, ``(n_rows, 3)``, `Snapshot.look` says what."""
    rows_of = traitlets.Dict().tag(sync=True)
    """Which feature, at which threshold and natural, and the numbers of the SAE without it."""
    shipped = traitlets.Bytes(b"").tag(sync=True)
    """The same for some more features, as things stood when they were sent."""
    shipped_of = traitlets.List(traitlets.Dict()).tag(sync=True)
    knobs = traitlets.List(traitlets.Dict()).tag(sync=True)
    charts = traitlets.List(traitlets.Dict()).tag(sync=True)

    def __init__(
        self,
        sae: Source | None = None,
        activations: Tensor | ActivationStore | None = None,
        *,
        sentiment: LabelledSplit | None = None,
        feature: int | None = None,
        n_rows: int = 1024,
    ) -> None:
        if n_rows < 2:
            raise InputError(f"n_rows must be at least 2, not {n_rows}")
        shown, x, sentiment = _materials(sae, activations, sentiment, n_rows)
        snapshot = Snapshot(copy.deepcopy(shown), x)
        if feature is not None and not 0 <= feature < snapshot.sae.d_sae:
            raise InputError(f"feature must lie between 0 and {snapshot.sae.d_sae - 1}, not {feature}")
        if sentiment is not None and sentiment.train.x.shape[1] != x.shape[1]:
            raise InputError(
                f"the probe's inputs have width {sentiment.train.x.shape[1]}, the activations {x.shape[1]}; "
                "take both from one hook"
            )
        self._sentiment = sentiment
        self._snapshot: Snapshot = snapshot
        self._grid = self._first_curves()
        self._in_use = threading.RLock()
        self._pending: deque[SparseAutoencoder] = deque(maxlen=1)  # put and taken in two threads
        self._changed_at = -np.inf
        self._next_look = 0.0
        self._task = LatestTask(self._show_error)
        raw = probe(*sentiment).test_accuracy if sentiment is not None else None
        super().__init__(
            feature=snapshot.typical_feature() if feature is None else feature,
            gate_threshold=snapshot.gate_threshold,
            n_rows=len(x),
            knobs=_knobs(snapshot.gate_threshold),
            charts=_charts(raw),
        )
        self._show_snapshot()
        self._ship()
        self.observe(self._on_knob, ["gate_threshold", "natural", "feature"])
        follow(self, sae, self._on_source)
        self._source = sae
        self._task.submit(self._work)

    @property
    def sae(self) -> ElementwiseSAE:
        """The SAE that is looked at: a copy, as it stood; see `apply` for one with the thresholds chosen here."""
        return self._snapshot.sae

    @property
    def test_x(self) -> Tensor:
        return self._snapshot.x

    @property
    def sentiment(self) -> LabelledSplit | None:
        return self._sentiment

    def apply(self) -> ElementwiseSAE:
        """A copy of the SAE with the thresholds and the ``b_mag`` chosen here (see `saelab.sae.thresholds`)."""
        own = {self.feature: self.feature_threshold_offset} if self.feature_threshold_offset else None
        return with_thresholds(self.sae, gate_threshold=self.gate_threshold, natural=self.natural, own_thresholds=own)

    def frame(self) -> "pd.DataFrame":
        """What the charts show: a row for each ``natural`` and ``threshold``; NaN where it is not computed yet.

        The probe is fitted at every fifth threshold, for ``natural`` 0 and those that were chosen.
        """
        import pandas as pd

        index = pd.MultiIndex.from_product([NATURALS, THRESHOLDS], names=["natural", "threshold"])
        values = np.frombuffer(self.curves, dtype=np.float32).reshape(-1, len(COLUMNS))
        return pd.DataFrame(values, index=index, columns=list(COLUMNS)).reset_index()

    def wait(self, timeout: float = 600.0) -> None:
        """Block the cell until all curves are there. Raises TimeoutError."""
        self._task.wait(timeout)

    def to_html(self) -> str:
        self.wait()  # in a page, nothing comes later
        return super().to_html()

    def __repr__(self) -> str:
        return f"GateExplorer({self.architecture}, d_sae={self.sae.d_sae}, feature {self.feature})"

    @traitlets.validate("feature")
    def _check_feature(self, proposal: dict[str, Any]) -> int:
        feature: int = proposal["value"]
        if not 0 <= feature < self.sae.d_sae:
            raise traitlets.TraitError(f"feature must lie between 0 and {self.sae.d_sae - 1}, not {feature}")
        return feature

    # Callbacks, in the kernel's main thread, or a subshell's

    def _on_knob(self, change: dict[str, Any]) -> None:
        self._changed_at = time.monotonic()  # what is missing can wait until the knob rests
        with self._handling():
            self._show_feature()
        if change["name"] == "natural":  # its probe
            self._task.submit(self._work)

    def _show_feature(self) -> None:
        with self._in_use:  # of several moves, the last is the last to be sent
            rows, of = self._snapshot.look([self.feature], self.gate_threshold, self.natural)
            with self.hold_sync():
                self.rows, self.rows_of = rows, of[0]

    # In the thread of whoever changes the SAE that is followed

    def _on_source(self) -> None:
        assert self._source is not None  # who follows nobody is not called
        self._pending.append(copy.deepcopy(sae_of(self._source)))  # as it stands between two steps
        self._changed_at = time.monotonic()
        self._task.submit(self._work)

    # In the task's thread

    def _work(self) -> None:
        """Look at the SAE that is followed, where it has changed, and compute what is missing."""
        while self.comm is not None and not self._task.superseded:  # not closed; the newer job goes on from here
            now = time.monotonic()
            if self._pending:
                if now < self._next_look:
                    time.sleep(min(0.05, self._next_look - now))
                    continue
                self._look_at(self._pending.popleft())
                self._next_look = time.monotonic() + max(FOLLOW_SECONDS, 4 * (time.monotonic() - now))
            elif now - self._changed_at < CALM_SECONDS:
                time.sleep(0.05)
            elif not self._fill_in():
                return

    def _look_at(self, sae: SparseAutoencoder) -> None:
        """Show another SAE; one that cannot be shown is refused, and the last one stays."""
        snapshot = Snapshot(sae, self._snapshot.x)
        with self._in_use:
            self._snapshot = snapshot
            self._grid = self._first_curves()
            with self.hold_sync():
                self.feature = min(self.feature, sae.d_sae - 1)
                self.error = ""
                self.shipped, self.shipped_of = b"", []
                self._show_snapshot()
        self._sae_has_changed()

    def _show_snapshot(self) -> None:
        snapshot = self._snapshot
        with self.hold_sync():
            self.architecture = snapshot.sae.architecture
            self.densities = snapshot.densities.float().numpy().tobytes()
            self.curves = self._grid.tobytes()
            self.status = self._summary()
            self._show_feature()

    def _first_curves(self) -> NDArray[np.float32]:
        """All curves, NaN but for those around the natural that is chosen, and the learned ones."""
        grid = np.full((len(NATURALS), len(THRESHOLDS), len(COLUMNS)), np.nan, dtype=np.float32)
        for index in {0, *self._chosen_naturals()}:
            grid[index, :, :PROBED] = self._curves(NATURALS[index])
        return grid

    def _curves(self, natural: float) -> NDArray[np.float32]:
        """L0, gamma and FVU at each of `THRESHOLDS`."""
        frame = threshold_curves(self._snapshot.sae, self._snapshot.x, THRESHOLDS, natural=natural)
        return frame[list(COLUMNS[:PROBED])].to_numpy(np.float32)

    def _chosen_naturals(self) -> tuple[int, int]:
        """Where in `NATURALS` the chosen one lies."""
        at = self.natural * (len(NATURALS) - 1)
        return int(np.floor(at + 1e-6)), int(np.ceil(at - 1e-6))

    def _fill_in(self) -> bool:
        """Compute one thing that is missing; False where there is none."""
        if not self.shipped:
            self._ship()
            return True
        for index, natural in enumerate(NATURALS):
            if np.isnan(self._grid[index, 0, 0]):
                self._grid[index, :, :PROBED] = self._curves(natural)
                self.curves = self._grid.tobytes()
                return True
        if self._sentiment is not None:
            for index in (0, *self._chosen_naturals()):
                missing = np.isnan(self._grid[index, ::PROBE_EVERY, PROBED]).nonzero()[0] * PROBE_EVERY
                if len(missing):
                    self._probe(index, missing)
                    return True
        self.status = self._summary()
        return False

    def _probe(self, index: int, missing: NDArray[np.intp]) -> None:
        assert self._sentiment is not None
        parts = [(self._snapshot.gates_of(part.x), part.labels) for part in self._sentiment]
        for done, row in enumerate(missing):
            if self._task.superseded:
                return
            self.status = f"{self._summary()} Probing at threshold {done + 1} of {len(missing)}."
            codes = [
                LabelledActivations(gates.codes(THRESHOLDS[row], NATURALS[index]), labels) for gates, labels in parts
            ]
            self._grid[index, row, PROBED] = probe(*codes).test_accuracy
            self.curves = self._grid.tobytes()

    def _ship(self) -> None:
        with self._in_use:
            features = self._snapshot.varied_features(self.feature, N_SHIPPED)
            shipped, of = self._snapshot.look(features, self.gate_threshold, self.natural)
            with self.hold_sync():
                self.shipped, self.shipped_of = shipped, of

    def _summary(self) -> str:
        sae = self._snapshot.sae
        label = architecture_label(sae.architecture)
        return f"{label} SAE with {sae.d_sae:,} features, on {len(self._snapshot.x):,} held-out tokens."

    def _picture(self) -> bytes:
        return _picture(self)


def _materials(
    source: Source | None,
    activations: Tensor | ActivationStore | None,
    sentiment: LabelledSplit | None,
    n_rows: int,
) -> tuple[SparseAutoencoder, Tensor, LabelledSplit | None]:
    """The SAE, activations that it has not seen, and probe inputs: what is given, what a widget has, or the default."""
    given = activations
    if source is None:
        sae, store = default_sae()
        if given is None:
            given, n_rows = store, min(n_rows, N_TEST)
            sentiment = sentiment or snippets_at(*trained_at(sae)).split()
    else:
        sae = sae_of(source)
        if given is None and isinstance(source, HasSAE):
            given = source.test_x
            sentiment = sentiment or source.sentiment
        if given is None:
            at = trained_at(sae)
            given = test_activations_at(at.model_name, at.hook, n_rows, at.scale)
            sentiment = sentiment or snippets_at(*at).split()
    rows = given.activations if isinstance(given, ActivationStore) else given
    x = rows[max(0, len(rows) - n_rows) :]
    check_activations(x, sae.d_in)
    return sae, x.detach().float().cpu(), sentiment


def _knobs(gate_threshold: float) -> list[KnobSpec]:
    return [
        knob(
            GATE_THRESHOLD,
            help="A feature is on where its gate pre-activation exceeds this. The SAE itself stays as it is.",
            default=gate_threshold,
        ),
        knob(
            "natural",
            label="Natural b_mag",
            help="0: the shift of magnitudes as learned. 1: none, so that they start from 0 at the gate.",
            min=0.0,
            max=1.0,
            step=0.1,
            default=0.0,
        ),
        knob(
            "feature_threshold_offset",
            label="Own threshold",
            symbol="\N{GREEK CAPITAL LETTER DELTA}\N{GREEK SMALL LETTER THETA}",
            help="Added to the threshold for this feature alone; the probe is left as it is.",
            min=-2.0,
            max=2.0,
            default=0.0,
        ),
    ]


def _charts(raw: float | None) -> list[ChartSpec]:
    charts = [chart("l0"), chart("gamma", domain=[None, None]), chart("fvu")]
    if raw is not None:
        reference = {"value": raw, "label": f"raw activations {raw:.2f}"}
        charts.append(
            chart(
                "probe_accuracy",
                help="Sentiment of snippets it has not seen, read by a linear probe from codes; at every fifth step.",
                reference=reference,
            )
        )
    return charts


def _picture(explorer: GateExplorer) -> bytes:
    from matplotlib.figure import Figure  # no pyplot: its global state is not safe in a callback's thread
    from matplotlib.ticker import LogLocator, NullLocator

    rows = np.frombuffer(explorer.rows, dtype=np.float32).reshape(-1, 3)
    of = explorer.rows_of
    pi_gate = rows[:, 0]
    own = explorer.gate_threshold + explorer.feature_threshold_offset
    color = architecture_color(explorer.architecture)
    figure = Figure(figsize=(9.6, 4.6), dpi=80, layout="constrained", facecolor="white")
    figure.suptitle(
        f"{architecture_label(explorer.architecture)} SAE, feature {explorer.feature}: "
        f"gate threshold {explorer.gate_threshold:g}, natural {explorer.natural:g}",
        fontsize=9,
        color=INK,
    )
    (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False)
    histogram, code = upper.subplots(1, 2)
    histogram.hist(pi_gate, bins=60, color=color, alpha=0.8)
    histogram.set_yscale("log")
    histogram.set_title(f"Tokens by gate pre-activation: on for {(pi_gate > own).mean():.1%}", fontsize=9, color=INK)
    grid = np.linspace(pi_gate.min(), pi_gate.max(), 400)
    magnitude = np.maximum(of["slope"] * grid + (1 - explorer.natural) * of["shift"], 0)
    code.plot(grid, magnitude, ":", color=INK, linewidth=1)
    code.plot(grid, np.where(grid > own, magnitude, 0), color=color, linewidth=1.5)
    code.set_title("Magnitude (dotted) and code", fontsize=9, color=INK)
    for ax in (histogram, code):
        ax.axvline(own, color=COLORS["gamma"], linewidth=1)
        ax.set_xlabel("gate pre-activation", fontsize=8, color=INK)
    curves = explorer.frame()
    near = min(NATURALS, key=lambda natural: abs(natural - explorer.natural))
    for ax, spec in zip(lower.subplots(1, len(explorer.charts)), explorer.charts, strict=True):
        for natural, style in {0.0: "#aaaaaa", near: COLORS[spec["color"]]}.items():
            curve = curves[curves["natural"] == natural][["threshold", spec["column"]]].dropna()
            ax.plot(curve["threshold"], curve[spec["column"]], color=style, linewidth=1.5)
        ax.set_yscale(spec["scale"])
        if spec["scale"] == "log":  # plain numbers: within one decade matplotlib writes out every power of ten
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_locator(NullLocator())
        ax.axvline(explorer.gate_threshold, color=INK, linewidth=0.8)
        value = np.interp(explorer.gate_threshold, curve["threshold"], curve[spec["column"]]) if len(curve) else np.nan
        ax.set_title(f"{spec['label']}  {value:.{spec['digits']}f}", fontsize=9, color=INK)
        ax.set_xlabel("gate threshold", fontsize=8, color=INK)
    for ax in figure.axes:
        plain_axes(ax)
        ax.grid(alpha=0.25)
    return as_png(figure)

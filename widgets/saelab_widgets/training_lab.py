"""`TrainingLab`: a sparse autoencoder that trains while its knobs are turned."""

import functools
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import torch
import traitlets
from torch import Tensor

import saelab
from saelab.activations import ActivationStore
from saelab.autoencoders import ARCHITECTURES, check_activations
from saelab.metrics import evaluate
from saelab.probing import LabelledActivations, ProbeReport, SentimentSplit, probe, sentiment_activations
from saelab.training import Trainer, TrainingConfig
from saelab_widgets.background import BackgroundLoop
from saelab_widgets.pictures import line_charts_png

if TYPE_CHECKING:
    import pandas as pd

STATIC = Path(__file__).parent / "static"
DEFAULT_HOOK = "blocks.1.hook_resid_post"
HELD_OUT = 1024
"""Activations kept out of training, on which L0, gamma and FVU are measured for every picture."""
BATCH_SIZE = 512
"""Half of the library's default: a knob is answered in as many steps, and a step takes half the time."""
MAX_ROWS = 400
"""Of the history on the screen; beyond it every second row is dropped."""
PROBE_SECONDS = 0.5
"""Between two probes, at least: one costs as much as several steps."""
COLUMNS = ("step", "l0", "gamma", "fvu", "probe_accuracy", "probe_train_accuracy", "n_active")
TRAINABLE = ("gated", "standard")
"""The architectures to choose from: those that learn from scratch."""
_KNOB_LABELS = {
    "l1_coefficient": "L1 penalty",
    "aux_coefficient": "Auxiliary loss",
    "gate_threshold": "Gate threshold",
}
EVENT_STEPS = 40
"""Moves of one knob that are closer than this make one event."""
MAX_EVENTS = 50


@functools.lru_cache(maxsize=2)
def _default_data(hook: str, n_tokens: int) -> tuple[ActivationStore, SentimentSplit]:
    """Activations and sentiment set of the embedded model: kept, so that a cell run again starts at once."""
    model = saelab.load_language_model()
    store = saelab.harvest(model, hook, saelab.load_text(), n_tokens=n_tokens)
    return store, sentiment_activations(model, hook, scale=store.scale)


class TrainingLab(anywidget.AnyWidget):
    """A sparse autoencoder that trains beside the kernel, its knobs, and live charts of what they do.

    Every knob is a trait: ``lab.l1_coefficient = 8`` in a cell and the slider do the same thing, and
    ``lab.observe(function, "step")`` works. Training runs in a thread; only one lab of a process trains at a time.

    Parameters
    ----------
    activations
        What to train on, ``(n, d_in)`` with E||x||^2 = d_in, or an `ActivationStore`. By default ``n_tokens``
        activations of the embedded language model at ``hook``. The last 1,024 rows are kept for measuring.
    sentiment
        Probe inputs at the same place with the same scale (`saelab.sentiment_activations`). By default the sentiment
        set where ``activations`` is the default too, else there is no probe.
    architecture, d_sae, seed
        Of the autoencoder; the architecture can be changed on the screen, which starts anew.
    l1_coefficient, aux_coefficient, gate_threshold
        Where the knobs stand at first.
    hook, n_tokens
        Of the default activations.
    n_steps
        Training pauses there; starting it again goes on for as many steps.
    warm_up_steps
        Steps to train before the widget appears, so that its charts show something at once.

    Raises
    ------
    TypeError, ValueError
        Activations that are empty, hold NaN, or are too few; a probe of another width; an unknown architecture or hook.

    Examples
    --------
    >>> from saelab_widgets import TrainingLab
    >>> lab = TrainingLab()
    >>> lab
    """

    _esm = STATIC / "training_lab.js"
    _css = STATIC / "training_lab.css"

    architecture = traitlets.Enum(TRAINABLE, "gated").tag(sync=True)
    l1_coefficient = traitlets.Float(4.0, min=0.0).tag(sync=True)
    aux_coefficient = traitlets.Float(1.0, min=0.0).tag(sync=True)
    gate_threshold = traitlets.Float(0.0).tag(sync=True)
    running = traitlets.Bool(False).tag(sync=True)
    """True while training; set it to start or pause."""
    step = traitlets.Int(0).tag(sync=True)
    n_steps = traitlets.Int(20_000).tag(sync=True)
    steps_per_second = traitlets.Float(0.0).tag(sync=True)
    status = traitlets.Unicode("").tag(sync=True)
    error = traitlets.Unicode("").tag(sync=True)
    history = traitlets.Bytes(b"").tag(sync=True)
    """The rows on the screen, float32, with the columns of `columns`; `history_frame` reads it."""
    columns = traitlets.List(traitlets.Unicode(), list(COLUMNS)).tag(sync=True)
    events = traitlets.List(traitlets.Dict()).tag(sync=True)
    """When a knob moved: ``{"step": ..., "label": ...}``."""
    architectures = traitlets.List(traitlets.Dict()).tag(sync=True)
    knobs = traitlets.List(traitlets.Dict()).tag(sync=True)
    charts = traitlets.List(traitlets.Dict()).tag(sync=True)

    def __init__(
        self,
        activations: Tensor | ActivationStore | None = None,
        *,
        sentiment: SentimentSplit | None = None,
        architecture: str = "gated",
        d_sae: int = 1024,
        seed: int = 0,
        l1_coefficient: float = 4.0,
        aux_coefficient: float = 1.0,
        gate_threshold: float = 0.0,
        hook: str = DEFAULT_HOOK,
        n_tokens: int = 100_000,
        n_steps: int = 20_000,
        warm_up_steps: int = 200,
    ) -> None:
        if architecture not in TRAINABLE:
            raise ValueError(f"architecture must be one of {', '.join(TRAINABLE)}, not {architecture!r}")
        if n_steps < 1 or warm_up_steps < 0:
            raise ValueError(f"n_steps must be at least 1 and warm_up_steps 0, not {n_steps} and {warm_up_steps}")
        if activations is None:
            activations, default_sentiment = _default_data(hook, n_tokens)
            sentiment = default_sentiment if sentiment is None else sentiment
        x = activations.activations if isinstance(activations, ActivationStore) else activations
        check_activations(x if isinstance(x, Tensor) else x[:1])
        if len(x) < 2 * HELD_OUT:
            raise ValueError(
                f"activations have {len(x)} rows; at least {2 * HELD_OUT} are needed, {HELD_OUT} to measure on"
            )
        if sentiment is not None and sentiment.train.x.shape[1] != x.shape[1]:
            raise ValueError(
                f"the probe's inputs have width {sentiment.train.x.shape[1]}, the activations {x.shape[1]}; "
                "take both from one hook"
            )
        n_train = len(x) - HELD_OUT
        self._train_x, self._held_out = x[:n_train] if isinstance(x, Tensor) else x.first(n_train), x[n_train:]
        self._trained_on = activations.trained_on if isinstance(activations, ActivationStore) else None
        self._sentiment = sentiment
        self._d_sae, self._seed = d_sae, seed
        self._rows: list[tuple[float, ...]] = []
        self._row_gap = 1
        self._next_probe = 0.0
        self._rate_from = (0, time.monotonic())
        self._control = threading.RLock()
        self._loop = BackgroundLoop(self._take_step, self._publish, self._ended)
        raw = probe(*sentiment) if sentiment is not None else None
        super().__init__(
            architecture=architecture,
            l1_coefficient=l1_coefficient,
            aux_coefficient=aux_coefficient,
            gate_threshold=gate_threshold,
            n_steps=n_steps,
            architectures=[{"value": name, "label": name.capitalize()} for name in TRAINABLE],
            knobs=_knobs(),
            charts=_charts(raw),
        )
        self._build_trainer()
        self.on_msg(self._on_message)
        self.observe(self._on_running, "running")
        self.observe(self._on_architecture, "architecture")
        self.observe(self._on_knob, list(_KNOB_LABELS))
        for _ in range(warm_up_steps):  # with all of torch's threads: there is no page to keep smooth yet
            self.trainer.step()
            if self.trainer.n_steps_done % 20 == 0:
                self._publish()
        self._publish()
        self.status = "Press Start, then drag the L1 penalty."

    @property
    def sae(self) -> saelab.SparseAutoencoder:
        """The autoencoder as it stands; pause before using it for anything that must not change meanwhile."""
        return self.trainer.sae

    def start(self) -> None:
        """Go on training, beside the kernel."""
        self.running = True

    def pause(self) -> None:
        """Stop training; everything stays as it is."""
        self.running = False

    def reset(self) -> None:
        """Start anew from the same seed with the knobs as they stand; goes on running if it ran.

        Raises
        ------
        RuntimeError
            Called from an observer while training: a step cannot end the run that it is part of.
        """
        if self._loop.is_current_thread:
            raise RuntimeError("reset() was called from an observer in the training thread; call it from a cell")
        with self._control:
            was_running = self._loop.running
            self._loop.stop()
            self._build_trainer()
            self._rows, self._row_gap, self._next_probe = [], 1, 0.0
            with self.hold_sync():
                self.events, self.error = [], ""
                self._publish()
                self.status = "Reset. Press Start."
            self.running = was_running

    def wait(self, timeout: float = 600.0) -> None:
        """Block the cell until training pauses by itself, at ``n_steps``. Raises TimeoutError."""
        self._loop.wait(timeout)

    def history_frame(self) -> "pd.DataFrame":
        """What the charts show, as a pandas DataFrame; NaN where the probe was not measured."""
        import pandas as pd

        rows = np.frombuffer(self.history, dtype=np.float32).reshape(-1, len(COLUMNS))
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"step": int})

    def __repr__(self) -> str:
        return f"TrainingLab({self.architecture}, d_sae={self._d_sae}, step {self.step})"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add a picture, for where no widget can run: GitHub, an untrusted notebook, a PDF."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            data = bundle[0] if isinstance(bundle, tuple) else bundle
            data["image/png"] = line_charts_png(self.history_frame(), self.charts, title=self._picture_title())
            data["text/plain"] = repr(self)
        return bundle

    def _picture_title(self) -> str:
        return (
            f"{self.architecture.capitalize()} SAE after {self.step:,} steps: L1 {self.l1_coefficient:g}, "
            f"auxiliary {self.aux_coefficient:g}, gate threshold {self.gate_threshold:g}"
        )

    def _build_trainer(self) -> None:
        sae = ARCHITECTURES[self.architecture](self._train_x.shape[1], self._d_sae, seed=self._seed)
        config = TrainingConfig(n_steps=self.n_steps, batch_size=BATCH_SIZE, seed=self._seed)
        sae.trained_on = self._trained_on
        self.trainer = Trainer(sae, self._train_x, config)
        for name in _KNOB_LABELS:  # after the trainer is in place: a knob that moves meanwhile is not lost
            setattr(self.trainer, name, getattr(self, name))
        self._stop_at = self.n_steps
        self._rate_from = (0, time.monotonic())

    # In the loop's thread

    def _take_step(self) -> bool:
        self.trainer.step()
        return self.trainer.n_steps_done < self._stop_at

    def _ended(self, error: Exception | None) -> None:
        with self.hold_sync():
            self.running = False
            self.steps_per_second = 0.0
            if error is not None:
                self.error = str(error) or type(error).__name__
                self.status = "Stopped by an error; Reset starts anew."
            elif self.trainer.n_steps_done >= self._stop_at:
                self.status = f"Paused after {self.trainer.n_steps_done:,} steps. Start goes on."
            else:
                self.status = "Paused. The gate threshold still answers."

    # In the loop's thread while it runs, else in the caller's

    def _publish(self) -> None:
        """Measure, and send what was measured: one message."""
        step, now = self.trainer.n_steps_done, time.monotonic()
        metrics = evaluate(self.sae, self._held_out)
        report = None
        if self._sentiment is not None and (now >= self._next_probe or not self._loop.running):
            report = self._probe()
            cost = time.monotonic() - now
            self._next_probe = time.monotonic() + max(PROBE_SECONDS, 4 * cost)  # at most a fifth of the time
        probed = (report.test_accuracy, report.train_accuracy, report.n_active) if report else (math.nan,) * 3
        self._add_row((step, metrics.l0, metrics.gamma, metrics.fvu, *probed))
        with self.hold_sync():
            self.history = np.array(self._rows, dtype=np.float32).tobytes()
            self.step = step
            before, since = self._rate_from
            if self._loop.running and now - since > 1:
                self.steps_per_second = (step - before) / (now - since)
                self._rate_from = (step, now)

    @torch.no_grad()
    def _probe(self) -> ProbeReport:
        assert self._sentiment is not None
        train, test = (LabelledActivations(self.sae.encode(part.x), part.labels) for part in self._sentiment)
        return probe(train, test)

    def _add_row(self, row: tuple[float, ...]) -> None:
        """Append, or replace the newest row while it is nearer to the one before than rows are apart by now."""
        rows = self._rows
        if rows and (row[0] == rows[-1][0] or (len(rows) > 1 and rows[-1][0] - rows[-2][0] < self._row_gap)):
            newest = rows.pop()
            if math.isnan(row[4]):  # no probe this time: keep the one of a moment ago
                row = row[:4] + newest[4:]
        rows.append(row)
        if len(rows) > MAX_ROWS:
            self._rows = rows[::-1][::2][::-1]  # the newest row stays
            self._row_gap = max(2 * self._row_gap, int(self._rows[1][0] - self._rows[0][0]))

    # In the kernel's main thread, or a subshell's

    @contextmanager
    def _errors_shown(self) -> Iterator[None]:
        """An exception in a callback ends in a log that nobody opens: show it in the widget, too."""
        try:
            yield
        except Exception as error:
            self.error = str(error) or type(error).__name__
            raise

    def _on_running(self, change: dict[str, Any]) -> None:
        if self._loop.is_current_thread:  # an observer of the lab's own, such as one that pauses at some step
            if not change["new"]:
                self._loop.stop()
            return
        with self._control, self._errors_shown():
            if not change["new"]:
                self._loop.stop()
            elif not self._loop.running:
                self.error, self.status = "", "Training."
                done = self.trainer.n_steps_done
                if done >= self._stop_at:
                    self._stop_at = done + self.n_steps
                self._rate_from = (done, time.monotonic())
                self._loop.start()

    def _on_architecture(self, change: dict[str, Any]) -> None:
        with self._errors_shown():
            self.reset()

    def _on_knob(self, change: dict[str, Any]) -> None:
        # No lock around this: an observer in the loop's thread may turn a knob while another thread waits for the loop.
        name = change["name"]
        setattr(self.trainer, name, change["new"])
        self._note_event(name, change["old"], change["new"])
        if name == "gate_threshold" and not self._loop.running:
            with self._control, self._errors_shown():
                self._publish()  # the codes change at once, with no training

    def _on_message(self, _: Any, content: dict[str, Any], buffers: list[bytes]) -> None:
        kind = content.get("kind")
        if kind == "reset":
            with self._errors_shown():
                self.reset()
        elif kind == "need":  # Colab drops the buffers of a widget's first message
            self.send_state("history")

    def _note_event(self, name: str, old: float, new: float) -> None:
        step = self.trainer.n_steps_done
        events = list(self.events)
        if events and events[-1]["name"] == name and step - events[-1]["step"] < EVENT_STEPS:
            old = events.pop()["old"]  # one drag of the slider, one event
        if step and new != old:
            label = f"{_KNOB_LABELS[name]} {old:g} \N{RIGHTWARDS ARROW} {new:g}"
            events.append({"step": step, "label": label, "name": name, "old": old})
        self.events = events[-MAX_EVENTS:]


def _knobs() -> list[dict[str, Any]]:
    both = ["gated", "standard"]
    return [
        {
            "name": "l1_coefficient",
            "label": _KNOB_LABELS["l1_coefficient"],
            "symbol": "\N{GREEK SMALL LETTER LAMDA}",
            "unit": "",
            "help": "Price of one unit of feature activation, against squared error summed over d_in.",
            "min": 0.25,
            "max": 16.0,
            "step": 0.05,  # decades
            "scale": "log",
            "default": 4.0,
            "paper": None,
            "enabled_for": both,
        },
        {
            "name": "aux_coefficient",
            "label": _KNOB_LABELS["aux_coefficient"],
            "symbol": "\N{GREEK SMALL LETTER ALPHA}",
            "unit": "",
            "help": "Weight of the term that teaches the gate to reconstruct. A standard SAE has no such term.",
            "min": 0.0,
            "max": 4.0,
            "step": 0.05,
            "scale": "linear",
            "default": 1.0,
            "paper": 1.0,
            "enabled_for": ["gated"],
        },
        {
            "name": "gate_threshold",
            "label": _KNOB_LABELS["gate_threshold"],
            "symbol": "\N{GREEK SMALL LETTER THETA}",
            "unit": "",
            "help": "A feature is on where its gate pre-activation exceeds this. It acts at once, also while paused.",
            "min": -1.0,
            "max": 4.0,
            "step": 0.05,
            "scale": "linear",
            "default": 0.0,
            "paper": 0.0,
            "enabled_for": both,
        },
    ]


def _charts(raw: ProbeReport | None) -> list[dict[str, Any]]:
    charts: list[dict[str, Any]] = [
        {
            "column": "l0",
            "label": "L0",
            "unit": "features on",
            "help": "Mean number of features on per token.",
            "domain": [1.0, None],
            "scale": "log",
            "reference": None,
            "secondary": None,
            "digits": 1,
            "color": "l0",
        },
        {
            "column": "gamma",
            "label": "Bias \N{GREEK SMALL LETTER GAMMA}",
            "unit": "",
            "help": "Relative reconstruction bias: below 1 the reconstruction has shrunk.",
            "domain": [0.4, 1.2],
            "scale": "linear",
            "reference": {"value": 1.0, "label": "unbiased"},
            "secondary": None,
            "digits": 3,
            "color": "gamma",
        },
        {
            "column": "fvu",
            "label": "FVU",
            "unit": "",
            "help": "Fraction of the activations' variance that the reconstruction leaves unexplained.",
            "domain": [0.0, 1.0],
            "scale": "linear",
            "reference": None,
            "secondary": None,
            "digits": 3,
            "color": "fvu",
        },
    ]
    if raw is not None:
        charts.append(
            {
                "column": "probe_accuracy",
                "label": "Probe accuracy",
                "unit": "",
                "help": "Sentiment, read by a linear probe from the codes of snippets it has not seen;",
                "domain": [0.4, 1.0],
                "scale": "linear",
                "reference": {"value": raw.test_accuracy, "label": f"raw activations {raw.test_accuracy:.2f}"},
                "secondary": "probe_train_accuracy",
                "digits": 3,
                "color": "probe",
            }
        )
    return charts

"""`TrainingLab`: a sparse autoencoder that trains while its knobs are turned."""

import json
import math
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
import traitlets
from torch import Tensor

import saelab
from saelab.data.activations import ActivationStore
from saelab.data.labelled import LabelledActivations, LabelledSplit
from saelab.data.language_models import EMBEDDED_MODEL
from saelab.errors import InputError, InputTypeError
from saelab.evaluation.metrics import METRICS
from saelab.evaluation.probing import ProbeReport, probe
from saelab.sae.base import ARCHITECTURES, Preset, SparseAutoencoder, check_activations
from saelab.sae.declarations import Knob, LossTerm
from saelab.training.runs import LR, TrainingConfig
from saelab.training.trainer import Trainer
from saelab_widgets.background import BackgroundLoop, one_thread_on_small_machines
from saelab_widgets.instrument import STATIC, Instrument
from saelab_widgets.materials import DEFAULT_HOOK, N_TEST, activations_at, snippets_at
from saelab_widgets.pictures import line_charts_png
from saelab_widgets.quantities import architecture_label, chart, knob, other_line
from saelab_widgets.sources import HasSAE
from saelab_widgets.specs import ChartSpec

if TYPE_CHECKING:
    import pandas as pd

N_MEASURED = 512
"""How many of the activations kept out of training the charts are of, but for the probe: they are measured ten times a
second, and twice as many would take another twentieth of the time."""
BATCH_SIZE = 512
"""Half of the library's default: a knob is answered in as many steps, and a step takes half the time."""
MAX_ROWS = 400
"""Of the history on the screen; beyond it every second row is dropped."""
MAX_RECORDS = 1000
"""Of the trainer's own records, which would else grow for as long as it trains."""
PROBE_SECONDS = 0.5
"""Between two probes, at least: one costs as much as several steps."""
PROBE_COLUMNS = ("probe_accuracy", "probe_train_accuracy", "n_active")
COLUMNS = ("step", "l0", "gamma", "fvu", *PROBE_COLUMNS, "n_dead", "loss", "reconstruction")
"""Columns of the history; behind them stand `FURTHER`, then the other terms of the losses."""
FURTHER = tuple(name for name in METRICS if name not in (*COLUMNS, "n_inputs"))
"""Metrics of `saelab.evaluate` that are measured while their chart is shown."""
SETUP = ("architecture", "preset", "ablations", "seed")
"""What cannot change within a run: another choice starts anew."""
EVENT_STEPS = 40
"""Moves of one knob that are closer than this make one event."""
MAX_EVENTS = 50
MAX_KEPT_RUNS = 6
WORTH_KEEPING = 50
"""Steps after which a run that is given up stays on the charts as a shadow."""


def trainable() -> dict[str, type[SparseAutoencoder]]:
    """Architectures to choose from: all that train from scratch, one's own included."""
    return {name: cls for name, cls in ARCHITECTURES.items() if cls.trains_from_scratch}


def knobs_of_all() -> dict[str, Knob]:
    """Every knob of those architectures by name: coefficients, then live settings, then the learning rate."""
    coefficients = [term.coefficient for cls in trainable().values() for term in cls.terms]
    settings = [knob for cls in trainable().values() for knob in cls.live_settings]
    return {knob.name: knob for knob in (*coefficients, *settings, LR)}


class KnobTrait(traitlets.Float):  # type: ignore[type-arg]
    """A knob as a synced trait, which takes what the knob takes."""

    def __init__(self, knob: Knob) -> None:
        super().__init__(default_value=knob.default)
        self._knob = knob
        self.tag(sync=True)

    def validate(self, obj: Any, value: object) -> float:
        try:
            return self._knob.checked(value)
        except (TypeError, ValueError) as error:
            raise traitlets.TraitError(str(error)) from error


class TrainingLab(Instrument, HasSAE):
    """A sparse autoencoder that trains beside the kernel, its knobs, and live charts of what they do.

    Every knob is a trait: ``lab.l1_coefficient = 8`` in a cell and the slider do the same thing, and
    ``lab.observe(function, "step")`` works. Training runs in a thread; only one lab of a process trains at a time.

    Parameters
    ----------
    activations
        What to train on, ``(n, d_in)`` with E||x||^2 = d_in, or an `ActivationStore`. By default ``n_tokens``
        activations of the embedded language model at ``hook``. The last 1,024 rows are kept out of training: the charts
        are of the first 512 of these.
    sentiment
        Probe inputs at the same hook and scale (``saelab.sentiment_set(...).split()``). By default the sentiment set
        where ``activations`` is the default too, else there is no probe.
    architecture, preset, ablations, seed, d_sae
        Kind of autoencoder, any that trains from scratch; all but ``d_sae`` can be changed on the screen, which starts
        anew. Ablations are those of `saelab.GatedSAE`, and act where the architecture is gated and the preset the
        paper's.
    knobs
        Where knobs stand at first, by name: ``l1_coefficient``, ``gate_threshold``, ``lr`` and whatever else an
        architecture declares. A knob acts while an architecture that has it is chosen.
    hook, n_tokens
        Of the default activations.
    n_steps
        Training pauses there; starting it again goes on for as many steps.
    warm_up_steps
        Steps to train before the widget appears, so that its charts show something at once.

    Raises
    ------
    TypeError, ValueError
        Activations that are empty, hold NaN, or are too few; a probe of another width; an unknown architecture, preset,
        ablation, knob or hook.

    Examples
    --------
    >>> from saelab_widgets import TrainingLab
    >>> lab = TrainingLab()
    >>> lab
    """

    _esm = STATIC / "training_lab.js"
    _css = STATIC / "training_lab.css"
    ACTIONS = ("reset", "take_step", "keep_run", "forget_run", "export")

    architecture = traitlets.Unicode("gated").tag(sync=True)
    preset = traitlets.Enum(get_args(Preset), "paper").tag(sync=True)
    ablations = traitlets.List(traitlets.Unicode()).tag(sync=True)
    seed = traitlets.Int(0, min=0).tag(sync=True)
    running = traitlets.Bool(False).tag(sync=True)
    """True while training; set it to start or pause."""
    step = traitlets.Int(0).tag(sync=True)
    n_steps = traitlets.Int(20_000).tag(sync=True)
    steps_per_second = traitlets.Float(0.0).tag(sync=True)
    history = traitlets.Bytes(b"").tag(sync=True)
    """The rows on the screen, float32, with the columns of `columns`; `frame` reads it."""
    columns = traitlets.List(traitlets.Unicode()).tag(sync=True)
    events = traitlets.List(traitlets.Dict()).tag(sync=True)
    """When a knob moved: ``{"step": ..., "label": ...}``."""
    runs = traitlets.List(traitlets.Dict()).tag(sync=True)
    """Earlier runs, drawn as shadows: ``{"id": ..., "label": ..., "history": ..., "kept": ...}``; one is not."""
    shown_charts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """Columns whose charts are shown, any of `charts`; a metric that was not shown before is measured from now on."""
    options = traitlets.Dict().tag(sync=True)
    knobs = traitlets.List(traitlets.Dict()).tag(sync=True)
    """The sliders; each moves the trait of its name."""
    charts = traitlets.List(traitlets.Dict()).tag(sync=True)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # the knobs, which each lab has as traits

    def __init__(
        self,
        activations: Tensor | ActivationStore | None = None,
        *,
        sentiment: LabelledSplit | None = None,
        architecture: str = "gated",
        preset: Preset = "paper",
        ablations: Sequence[str] = (),
        d_sae: int = 1024,
        seed: int = 0,
        hook: str = DEFAULT_HOOK,
        n_tokens: int = 100_000,
        n_steps: int = 20_000,
        warm_up_steps: int = 200,
        **knobs: float,
    ) -> None:
        self._knobs = knobs_of_all()
        if unknown := knobs.keys() - self._knobs.keys():
            raise InputTypeError(
                f"TrainingLab takes no {', '.join(sorted(unknown))}; its knobs are {', '.join(self._knobs)}"
            )
        for name, value, allowed in (
            ("architecture", architecture, trainable()),
            ("preset", preset, get_args(Preset)),
            *(("ablations", one, _ablations()) for one in ablations),
        ):
            if value not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        if n_steps < 1 or warm_up_steps < 0:
            raise InputError(f"n_steps must be at least 1 and warm_up_steps 0, not {n_steps} and {warm_up_steps}")
        if activations is None:
            activations = activations_at(EMBEDDED_MODEL, hook, n_tokens)
            if sentiment is None:
                sentiment = snippets_at(*activations.trained_on).split()
        x = activations.activations if isinstance(activations, ActivationStore) else activations
        check_activations(x if isinstance(x, Tensor) else x[:1])
        if len(x) < 2 * N_TEST:
            raise InputError(
                f"activations have {len(x)} rows; at least {2 * N_TEST} are needed, {N_TEST} to measure on"
            )
        if sentiment is not None and sentiment.train.x.shape[1] != x.shape[1]:
            raise InputError(
                f"the probe's inputs have width {sentiment.train.x.shape[1]}, the activations {x.shape[1]}; "
                "take both from one hook"
            )
        n_train = len(x) - N_TEST
        self._train_x, self._test_x = x[:n_train] if isinstance(x, Tensor) else x.first(n_train), x[n_train:]
        self._trained_on = activations.trained_on if isinstance(activations, ActivationStore) else None
        self._sentiment = sentiment
        self._d_sae = d_sae
        self._rows: list[tuple[float, ...]] = []
        self._row_gap = 1
        self._n_runs = 0
        self._next_probe = 0.0
        self._rate_from = (0, time.monotonic())
        self._control = threading.RLock()
        self._loop = BackgroundLoop(self._take_step, self._publish, self._ended)
        raw = probe(*sentiment) if sentiment is not None else None
        self._terms = {term.name: term for cls in trainable().values() for term in cls.terms}
        self._columns = [*COLUMNS, *FURTHER, *self._terms]
        charts = _charts(raw, self._terms.values())
        self.add_traits(**{name: KnobTrait(one) for name, one in self._knobs.items()})
        super().__init__(
            architecture=architecture,
            preset=preset,
            ablations=list(ablations),
            seed=seed,
            n_steps=n_steps,
            columns=self._columns,
            options={
                "architecture": [
                    {"value": name, "label": architecture_label(name), "ablations": list(cls.ablation_labels)}
                    for name, cls in trainable().items()
                ],
                "preset": [{"value": "paper", "label": "paper"}, {"value": "norm_weighted", "label": "norm-weighted"}],
                "ablations": [{"value": name, "label": label} for name, label in _ablations().items()],
                "shown_charts": [{"value": one["column"], "label": one["label"]} for one in charts],
            },
            knobs=[
                {
                    **knob(one),
                    "enabled_for": [a for a, cls in trainable().items() if one is LR or name in cls.knobs()],
                }
                for name, one in self._knobs.items()
            ],
            charts=charts,
            shown_charts=[one["column"] for one in charts if one["column"] not in FURTHER],
            **knobs,
        )
        self._build_trainer()
        self.observe(self._on_running, "running")
        self.observe(self._on_setup, list(SETUP))
        self.observe(self._on_knob, list(self._knobs))
        self.observe(self._on_shown_charts, "shown_charts")
        for _ in range(warm_up_steps):
            self.trainer.step()
            if self.trainer.n_steps_done % 20 == 0:
                self._publish()
        self._publish()
        self.status = "Press Start, then drag the L1 penalty."

    @property
    def sae(self) -> saelab.SparseAutoencoder:
        """The autoencoder as it stands; pause before using it for anything that must not change meanwhile."""
        return self.trainer.sae

    @property
    def test_x(self) -> Tensor:
        return self._test_x

    @property
    def sentiment(self) -> LabelledSplit | None:
        return self._sentiment

    @traitlets.validate("architecture")
    def _architecture_exists(self, proposal: dict[str, Any]) -> str:
        return _one_of("architecture", proposal["value"], trainable())

    @traitlets.validate("shown_charts")
    def _charts_exist(self, proposal: dict[str, Any]) -> list[str]:
        columns = [one["column"] for one in self.charts]
        return [_one_of("shown_charts", name, columns) for name in proposal["value"]]

    @traitlets.validate("ablations")
    def _ablations_exist(self, proposal: dict[str, Any]) -> list[str]:
        return [_one_of("ablations", name, _ablations()) for name in proposal["value"]]

    def start(self) -> None:
        """Go on training, beside the kernel."""
        self.running = True

    def pause(self) -> None:
        """Stop training; everything stays as it is."""
        self.running = False

    def take_step(self) -> None:
        """Take one step and measure; while it trains already, nothing happens."""
        with self._control, self._handling():
            if not self._loop.running:
                self.error = ""
                self.trainer.step()
                self._publish()
                self.status = f"One step: {self.trainer.n_steps_done:,} in all."

    def reset(self) -> None:
        """Start anew from `seed` with everything as it stands; goes on running if it ran.

        The run that ends here stays on the charts as a shadow until the next one does.

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
            before = [self._run_so_far(kept=False)] if self.trainer.n_steps_done >= WORTH_KEEPING else []
            self._build_trainer()
            self._rows, self._row_gap, self._next_probe = [], 1, 0.0
            with self.hold_sync():
                if before:
                    self.runs = [run for run in self.runs if run["kept"]] + before
                self.events, self.error = [], ""
                self._publish()
                self.status = "Reset. Press Start."
            self.running = was_running

    def keep_run(self, label: str | None = None) -> None:
        """Keep the curves so far as a shadow, under ``label``; of more than six the oldest goes."""
        kept = [run for run in self.runs if run["kept"]] + [self._run_so_far(kept=True, label=label)]
        self.runs = kept[-MAX_KEPT_RUNS:] + [run for run in self.runs if not run["kept"]]

    def forget_run(self, run_id: int) -> None:
        """Take away the shadow with this ``"id"`` in `runs`; where it is gone already, nothing happens."""
        self.runs = [run for run in self.runs if run["id"] != run_id]

    def export(self, folder: str | os.PathLike[str] | None = None) -> Path:
        """Write the SAE, the curves and the settings as they stand to a new folder, and return it.

        ``sae.safetensors`` is what `saelab.load` takes, ``history.csv`` is `frame`, ``settings.json`` says how
        to make the run again.

        Parameters
        ----------
        folder
            By default one under ``runs/`` in the notebook's folder, named after the run.

        Raises
        ------
        FileExistsError
            ``folder`` is there already.
        """
        with self._control:
            was_running = self._loop.running
            self._loop.stop()  # between two steps, and not in the middle of one
            path = Path(folder) if folder is not None else self._free_folder()
            path.mkdir(parents=True)
            saelab.save(self.sae, path / "sae.safetensors")
            self.frame().to_csv(path / "history.csv", index=False)
            settings = {name: getattr(self, name) for name in (*SETUP, *self.trainer.knobs, "step")}
            settings |= {"d_sae": self._d_sae, "batch_size": BATCH_SIZE, "events": self.events}
            (path / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            self.running = was_running
            self.status = f"Saved to {path}: SAE, curves and settings."
        return path

    def _free_folder(self) -> Path:
        name = f"lab-{self.architecture}-step{self.trainer.n_steps_done}"
        return next(
            path for n in range(1, 10_000) if not (path := Path("runs") / (name if n == 1 else f"{name}-{n}")).exists()
        )

    def wait(self, timeout: float = 600.0) -> None:
        """Block the cell until training pauses by itself, at ``n_steps``. Raises TimeoutError."""
        self._loop.wait(timeout)

    def close(self) -> None:
        """Pause, and let go of the page's side of it; the trainer and its SAE stay usable."""
        if hasattr(self, "_loop"):  # ipywidgets closes also what a constructor refused to make
            self._loop.stop()
        super().close()

    def frame(self) -> "pd.DataFrame":
        """What the charts show, as a pandas DataFrame; NaN where the probe was not measured.

        ``loss`` is the sum of ``reconstruction`` and of the other terms of the architecture's loss, such as
        ``sparsity`` and ``auxiliary``, each with its coefficient. A term that it does not have is NaN.
        """
        import pandas as pd

        rows = np.frombuffer(self.history, dtype=np.float32).reshape(-1, len(self._columns))
        return pd.DataFrame(rows, columns=self._columns).astype({"step": int})

    def __repr__(self) -> str:
        return f"TrainingLab({self.architecture}, d_sae={self._d_sae}, step {self.step})"

    def _picture(self) -> bytes:
        absent = self._terms.keys() - {term.name for term in self.sae.terms}
        charts = [
            {**one, "others": [line for line in one["others"] if line["column"] not in absent]}
            for one in self.charts
            if one["column"] in self.shown_charts
        ]
        return line_charts_png(self.frame(), charts, title=self._settings_line())

    def _settings_line(self) -> str:
        cls = trainable()[self.architecture]
        knobs = ", ".join(f"{one.short} {getattr(self, name):g}" for name, one in cls.knobs().items())
        return f"{architecture_label(self.architecture)} SAE after {self.step:,} steps: {knobs}"

    def _run_so_far(self, *, kept: bool, label: str | None = None) -> dict[str, Any]:
        sae = self.sae
        parts = [sae.label]
        if sae.sparsity_knob is not None:
            parts.append(f"{sae.sparsity_knob.short} {getattr(self, sae.sparsity_knob.name):g}")
        if sae.preset != "paper":
            parts.append(sae.preset.replace("_", "-"))
        parts += [sae.ablation_labels[name] for name in sae.settings().get("ablations", ())]
        self._n_runs += 1
        return {"id": self._n_runs, "label": label or ", ".join(parts), "history": self.history, "kept": kept}

    def _build_trainer(self) -> None:
        cls = trainable()[self.architecture]
        settings: dict[str, Any] = {"seed": self.seed, "preset": self.preset}
        if cls.ablation_labels and self.preset == "paper":
            settings["ablations"] = [name for name in self.ablations if name in cls.ablation_labels]
        sae = cls(self._train_x.shape[1], self._d_sae, **settings)
        config = TrainingConfig(n_steps=self.n_steps, batch_size=BATCH_SIZE, seed=self.seed)
        sae.trained_on = self._trained_on
        self.trainer = Trainer(sae, self._train_x, config)
        for name in self.trainer.knobs:  # after the trainer is in place: a knob that moves meanwhile is not lost
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
                self._show_error(error)
                self.status = "Stopped by an error; Reset starts anew."
            elif self.trainer.n_steps_done >= self._stop_at:
                self.status = f"Paused after {self.trainer.n_steps_done:,} steps. Start goes on."
            else:
                self.status = "Paused. The gate threshold still answers."

    # In the loop's thread while it runs, else in the caller's

    def _publish(self) -> None:
        """Measure, and send what was measured: one message."""
        step, now = self.trainer.n_steps_done, time.monotonic()
        measured = self.trainer.measure(self._test_x[:N_MEASURED])
        report = None
        if self._sentiment is not None and (now >= self._next_probe or not self._loop.running):
            report = self._probe()
            cost = time.monotonic() - now
            self._next_probe = time.monotonic() + max(PROBE_SECONDS, 20 * cost)  # at most a twentieth of the time
        probed = (report.test_accuracy, report.train_accuracy, report.n_active) if report else (math.nan,) * 3
        terms = {
            term.name: measured.coefficients[term.coefficient.name] * measured.terms[term.name]
            for term in self.sae.terms
        }
        row = {**measured.as_dict(), **dict(zip(PROBE_COLUMNS, probed, strict=True)), **terms}
        further = [name for name in FURTHER if name in self.shown_charts]
        if further:
            with one_thread_on_small_machines():
                metrics = saelab.evaluate(self.sae, self._test_x[:N_MEASURED]).as_dict()
            row |= {name: metrics[name] for name in further}
        self._add_row(tuple(row.get(name, math.nan) for name in self._columns))
        del self.trainer.records[:-MAX_RECORDS]
        with self.hold_sync():
            self.history = np.array(self._rows, dtype=np.float32).tobytes()
            self.step = step
            before, since = self._rate_from
            if self._loop.running and now - since > 1:
                self.steps_per_second = (step - before) / (now - since)
                self._rate_from = (step, now)
        self._sae_has_changed()

    @torch.no_grad()
    @one_thread_on_small_machines()
    def _probe(self) -> ProbeReport:
        assert self._sentiment is not None
        train, test = (LabelledActivations(self.sae.encode(part.x), part.labels) for part in self._sentiment)
        return probe(train, test)

    def _add_row(self, row: tuple[float, ...]) -> None:
        """Append, or replace the newest row while it is nearer to the one before than rows are apart by now."""
        rows = self._rows
        if rows and (row[0] == rows[-1][0] or (len(rows) > 1 and rows[-1][0] - rows[-2][0] < self._row_gap)):
            newest = rows.pop()
            first, last = (COLUMNS.index(name) for name in (PROBE_COLUMNS[0], PROBE_COLUMNS[-1]))
            if math.isnan(row[first]):  # no probe this time: keep the one of a moment ago
                row = row[:first] + newest[first : last + 1] + row[last + 1 :]
        rows.append(row)
        if len(rows) > MAX_ROWS:
            self._rows = rows[::-1][::2][::-1]  # the newest row stays
            self._row_gap = max(2 * self._row_gap, int(self._rows[1][0] - self._rows[0][0]))

    # In the kernel's main thread, or a subshell's

    def _on_running(self, change: dict[str, Any]) -> None:
        if self._loop.is_current_thread:  # an observer of the lab's own, such as one that pauses at some step
            if not change["new"]:
                self._loop.stop()
            return
        with self._control, self._handling():
            if not change["new"]:
                self._loop.stop()
            elif not self._loop.running:
                self.error, self.status = "", "Training."
                done = self.trainer.n_steps_done
                if done >= self._stop_at:
                    self._stop_at = done + self.n_steps
                self._rate_from = (done, time.monotonic())
                self._loop.start()

    def _on_setup(self, change: dict[str, Any]) -> None:
        with self._handling():
            self.reset()

    def _on_knob(self, change: dict[str, Any]) -> None:
        # No lock around this: an observer in the loop's thread may turn a knob while another thread waits for the loop.
        name = change["name"]
        if name not in self.trainer.knobs:
            self.status = f"{self._knobs[name].label} is no knob of a {self.sae.label} SAE: nothing changes."
            return
        setattr(self.trainer, name, change["new"])
        self._note_event(name, change["old"], change["new"])
        if name in {one.name for one in self.sae.live_settings} and not self._loop.running:
            with self._control, self._handling():
                self._publish()  # the codes change at once, with no training

    def _on_shown_charts(self, _: object) -> None:
        if not self._loop.running:
            with self._control, self._handling():
                self._publish()

    def _note_event(self, name: str, old: float, new: float) -> None:
        step = self.trainer.n_steps_done
        events = list(self.events)
        if events and events[-1]["name"] == name and step - events[-1]["step"] < EVENT_STEPS:
            old = events.pop()["old"]  # one drag of the slider, one event
        if step and new != old:
            label = f"{self._knobs[name].label} {old:g} \N{RIGHTWARDS ARROW} {new:g}"
            events.append({"step": step, "label": label, "name": name, "old": old})
        self.events = events[-MAX_EVENTS:]


def _one_of(name: str, value: str, allowed: Iterable[str]) -> str:
    if value not in allowed:
        raise traitlets.TraitError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    return value


def _ablations() -> dict[str, str]:
    """Every ablation of an architecture to choose from, with its label."""
    return {name: label for cls in trainable().values() for name, label in cls.ablation_labels.items()}


def _charts(raw: ProbeReport | None, terms: Iterable[LossTerm]) -> list[ChartSpec]:
    lines = [
        other_line("reconstruction", "reconstruction", "fvu"),
        *(other_line(term.name, term.label, term.hue) for term in terms),
    ]
    charts = [chart("l0"), chart("gamma"), chart("fvu")]
    if raw is not None:
        charts.append(
            chart(
                "probe_accuracy",
                reference={"value": raw.test_accuracy, "label": f"raw activations {raw.test_accuracy:.2f}"},
                others=[other_line("probe_train_accuracy", "probe train accuracy", "probe")],
            )
        )
    n_dead = chart("n_dead", help="On for no input of the last 100 steps.")
    of_loss = "Summed over the width, mean over tokens, on held-out activations; its terms:"
    further = [chart(name) for name in FURTHER]
    return [*charts, n_dead, chart("loss", help=of_loss, others=lines), *further]

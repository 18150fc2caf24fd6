"""`FeatureBrowser`: what each feature of an SAE reacts to, what it makes the model say, and which are like it."""

import copy
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
import traitlets
from numpy.typing import NDArray
from torch import Tensor

import saelab
from saelab.data.activations import ActivationStore, Rows
from saelab.data.labelled import LabelledActivations, LabelledSplit
from saelab.errors import InputError
from saelab.evaluation.features import FeatureReading
from saelab.sae.base import SparseAutoencoder
from saelab_widgets import materials
from saelab_widgets.background import LatestTask
from saelab_widgets.instrument import STATIC, Instrument
from saelab_widgets.pictures import INK
from saelab_widgets.quantities import COLORS, chart
from saelab_widgets.sources import HasSAE, Source, follow, sae_of

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

COLUMNS = ("density", "max_activation", "probe_weight")
"""Of the list, one row a feature; the probe weight is NaN where there is no probe."""

_CHARTS: dict[str, dict[str, Any]] = {
    "density": {"unit": "% of tokens", "domain": [0.0, 100.0], "digits": 2},  # the page shows it as a percentage
    "max_activation": {"help": "Tokens by how strongly the feature is on."},  # below it is their histogram
}


class Order(NamedTuple):
    """An order of the list; of equals the lower index comes first."""

    label: str
    column: str
    """One of `COLUMNS`; empty for the index itself."""
    sign: int
    """1 where the least comes first."""


ORDERS = {
    "probe_positive": Order("probe weight, positive first", "probe_weight", -1),
    "probe_negative": Order("probe weight, negative first", "probe_weight", 1),
    "max_activation": Order("largest activation", "max_activation", -1),
    "density": Order("density", "density", -1),
    "index": Order("index", "", 1),
}
N_SHIPPED = 48
"""Readings that the page has from the start, and that a page without a kernel is left with."""
N_BINS = 24
"""Of the histogram of a feature's activations, from 0 to its largest."""
BATCH_SIZE = 1024
SETTLE_SECONDS = 0.3
"""An SAE that changes again within this time is not read."""


class FeatureBrowser(Instrument, HasSAE):
    """All features of an SAE in a list, and a page on the chosen one.

    The page has the texts in which the feature is most on, with its activation on every token; how often and how
    strongly it is on; the tokens whose logits it raises and lowers; its weight in a sentiment probe; and the features
    most like it. ``browser.feature = 12`` in a cell and a click in the list do the same thing.

    Where ``sae`` is another widget, the browser says when that one's SAE has changed, and reads it again: by itself,
    or while it trains when "Read again" is pressed. Both then show the same `feature`, if the other has one.

    Parameters
    ----------
    sae
        An SAE, the path of its file, or a widget that has one. By default one that is trained for some seconds.
    store
        From `saelab.harvest`, as it came: the texts in which features are looked for. By default ``n_tokens`` tokens of
        the embedded text, at the hook and in the scale that the SAE was trained at.
    model
        That ``store`` was harvested from. By default the one that the SAE or the store names.
    sentiment
        Probe inputs at the same hook and scale (``saelab.sentiment_set(...).split()``). By default those of the
        widget that is followed, or the sentiment set where ``store`` is the default too; else there is no probe.
    feature
        The one to show first. By default the first of the list.
    n_contexts
        Texts shown of each feature, at most.
    n_tokens
        Of the default store.

    Raises
    ------
    TypeError, ValueError
        An ``sae`` that is none; one that does not know what it was trained on, where there is no ``store``; a store or
        a probe of another width; a feature that the SAE has not; no context or no token.

    Examples
    --------
    >>> from saelab_widgets import FeatureBrowser
    >>> FeatureBrowser()
    """

    _esm = STATIC / "feature_browser.js"
    _css = STATIC / "feature_browser.css"
    ACTIONS = ("read_again",)

    _source: HasSAE | None = None

    feature = traitlets.Int(0, min=0).tag(sync=True)
    order = traitlets.Unicode("index").tag(sync=True)
    """Of the list: a key of `ORDERS`."""
    search = traitlets.Unicode("").tag(sync=True)
    """Lists only features with this text in a context or in a token that they raise; upper and lower case are one."""
    show_dead = traitlets.Bool(False).tag(sync=True)
    """Whether the list has the features that are on for no token."""
    found = traitlets.Dict().tag(sync=True)
    """What `search` has found: ``{"search": ..., "features": [...]}``."""
    reading = traitlets.Dict().tag(sync=True)
    """All about `feature`; empty where it has not been read."""
    readings = traitlets.List(traitlets.Dict()).tag(sync=True)
    """The same of the first of the list."""
    stale = traitlets.Bool(False).tag(sync=True)
    """Whether the SAE has changed since its features were read."""
    listing = traitlets.Bytes(b"").tag(sync=True)
    """``(n_features, 3)``, float32, with the columns of `columns`."""
    columns = traitlets.List(traitlets.Unicode(), list(COLUMNS)).tag(sync=True)
    top_tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """Of each feature, the token on which it is most on."""
    orders = traitlets.List(traitlets.Dict()).tag(sync=True)
    """Those to choose from."""
    charts = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        sae: Source | None = None,
        store: ActivationStore | None = None,
        model: "TransformerBridge | None" = None,
        *,
        sentiment: LabelledSplit | None = None,
        feature: int | None = None,
        n_contexts: int = 8,
        n_tokens: int = 30_000,
    ) -> None:
        for name, value in (("n_contexts", n_contexts), ("n_tokens", n_tokens)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if sae is None:
            sae, whole = materials.default_sae()
            if store is None:
                store = _first(whole, n_tokens)
                sentiment = sentiment or materials.snippets_at(*whole.trained_on).split()
        self._given = (model, store, sentiment)
        self._source = sae if isinstance(sae, HasSAE) else None
        self._n_contexts, self._n_tokens = n_contexts, n_tokens
        self._asked = False
        self._task = LatestTask(self._show_error)
        version, snapshot = self._version(), copy.deepcopy(sae_of(sae))
        self._all = _read_all(snapshot, self._materials(snapshot), n_contexts, progress=True)
        if feature is not None:
            self._check_feature(feature)
        super().__init__(
            order=_orders(self._all)[0],
            charts={name: chart(name, **_CHARTS.get(name, {})) for name in COLUMNS},
        )
        self.feature = next(iter(self._listed()), 0) if feature is None else feature
        self._show_all(version)
        self.observe(self._on_feature, "feature")
        self.observe(self._on_search, "search")
        self.observe(self._on_list, ["order", "show_dead"])
        follow(self, self._source, self._source_has_changed)
        if feature is not None:
            self.feature = feature  # there, too
        if self._source is not None and self._source.has_trait("running"):
            self._source.observe(self._on_running, "running")

    @property
    def sae(self) -> SparseAutoencoder:
        """The SAE whose features are shown: the source's as it was when they were read."""
        return self._all.sae

    @property
    def test_x(self) -> Tensor | None:
        return None if self._source is None else self._source.test_x

    @property
    def sentiment(self) -> LabelledSplit | None:
        return self._all.sentiment

    def reading_of(self, feature: int) -> FeatureReading:
        """All that is known about a feature. Raises a ValueError where the SAE has no such feature."""
        self._check_feature(feature)
        return self._all.readings[feature]

    def frame(self) -> "pd.DataFrame":
        """A row a feature, in the order of their indices, with the columns of `saelab.FeatureReading.as_dict`."""
        import pandas as pd

        return pd.DataFrame([reading.as_dict() for reading in self._all.readings])

    def read_again(self) -> None:
        """Read the features of the source's SAE as it stands, beside the kernel; `wait` waits for it."""
        with self._handling():
            if self._source is None:
                return
            self._asked = True
            if not self._source_trains():  # else at its next picture, between two steps
                self._submit()

    def wait(self, timeout: float = 60.0) -> None:
        """Block the cell until no features are being read. Raises TimeoutError."""
        self._task.wait(timeout)

    def close(self) -> None:
        """Let go of the page's side of it, and of the widget that it follows; what was read stays."""
        if self._source is not None:
            with suppress(ValueError):  # closed before, or never begun
                self._source.unobserve(self._on_running, "running")
        super().close()

    def to_html(self) -> str:
        """As for every widget; the page has the first features of the list, the chosen one, and those nearest to it."""
        chosen = self._all.readings[self.feature] if self.feature < len(self._all.readings) else None
        self.readings = self._shipped([near.feature for near in chosen.nearest] if chosen else [])
        return super().to_html()

    def __repr__(self) -> str:
        return f"FeatureBrowser({len(self._all.readings)} features, feature {self.feature})"

    def _picture(self) -> bytes:
        feature = min(self.feature, len(self._all.readings) - 1)
        return _feature_png(self._all.readings[feature], self._all.histograms[feature])

    def _check_feature(self, feature: int) -> None:
        n_features = len(self._all.readings)
        if not 0 <= feature < n_features:
            raise InputError(f"this SAE has features 0 to {n_features - 1}, not {feature}")

    @traitlets.validate("feature")
    def _feature_exists(self, proposal: dict[str, Any]) -> int:
        feature: int = proposal["value"]
        # A widget that is followed may be ahead: its feature is then read together with its SAE.
        ahead = 0 if self._source is None else self._source.sae.d_sae
        n_features = max(len(self._all.readings), ahead)
        if feature >= n_features:
            raise traitlets.TraitError(f"this SAE has features 0 to {n_features - 1}, not {feature}")
        return feature

    @traitlets.validate("order")
    def _order_exists(self, proposal: dict[str, Any]) -> str:
        order: str = proposal["value"]
        if order not in _orders(self._all):
            raise traitlets.TraitError(f"order must be one of {', '.join(_orders(self._all))}, not {order!r}")
        return order

    def _materials(self, sae: SparseAutoencoder) -> "_Materials":
        """What was given, and in place of what was not, that which the SAE was trained on."""
        model, store, sentiment = self._given
        if sentiment is None and self._source is not None:
            sentiment = self._source.sentiment
        if store is None:
            name, hook, scale = materials.trained_at(sae)
            store = materials.activations_at(name, hook, self._n_tokens, scale)
            sentiment = sentiment or materials.snippets_at(name, hook, scale).split()
        return _Materials(model or materials.language_model(store.model_name), store, sentiment)

    def _listed(self) -> list[int]:
        """The features in the order of the list, whatever is searched for."""
        return listed(ORDERS[self.order], self._all.columns, show_dead=self.show_dead)

    def _shipped(self, more: list[int] | None = None) -> list[dict[str, Any]]:
        features = dict.fromkeys(self._listed()[:N_SHIPPED] + (more or []))
        return [self._all.as_dict(feature) for feature in features]

    def _show_all(self, version: int) -> None:
        """Set every trait to what `_all` holds, in one message."""
        names = _orders(self._all)
        with self.hold_sync():
            if self.order not in names:
                self.order = names[0]
            self.orders = [{"value": name, **ORDERS[name]._asdict()} for name in names]
            self.listing = self._all.columns.tobytes()
            self.top_tokens = [str(reading.as_dict()["top_token"]) for reading in self._all.readings]
            if self.feature >= len(self._all.readings):
                self.feature = next(iter(self._listed()), 0)
            self.reading = self._all.as_dict(self.feature)
            self.readings = self._shipped()
            self.found = self._search()
            self.stale = self._version() != version
            self.status, self.error = self._all.summary(), ""

    def _search(self) -> dict[str, Any]:
        return {"search": self.search, "features": found_in(self._all.texts, self.search)}

    def _on_feature(self, change: dict[str, Any]) -> None:
        with self._handling():
            self.reading = self._all.as_dict(change["new"])

    def _on_search(self, change: dict[str, Any]) -> None:
        with self._handling():
            self.found = self._search()

    def _on_list(self, change: dict[str, Any]) -> None:
        with self._handling():
            self.readings = self._shipped()

    # What the followed widget does; in its thread while it trains

    def _version(self) -> int:
        return 0 if self._source is None else self._source.sae_version

    def _source_trains(self) -> bool:
        return bool(getattr(self._source, "running", False))

    def _source_has_changed(self) -> None:
        self.stale = True
        if self._asked or not self._source_trains():
            with self._handling():
                self._submit()

    def _on_running(self, change: dict[str, Any]) -> None:
        if self.comm is not None and not change["new"] and self.stale:
            with self._handling():
                self._submit()

    def _submit(self) -> None:
        assert self._source is not None
        self._asked = False
        version, sae = self._version(), copy.deepcopy(self._source.sae)
        self._task.submit(partial(self._read_in_background, sae, version))

    # In the task's thread

    def _read_in_background(self, sae: SparseAutoencoder, version: int) -> None:
        settled = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < settled and not self._task.superseded:
            time.sleep(0.01)
        if self._task.superseded:
            return
        on = self._materials(sae)
        n_taken, n_rows = 0, _PASSES * len(on.store)

        def taken(n: int) -> None:
            nonlocal n_taken
            if self._task.superseded or self.comm is None:
                raise _SupersededError
            n_taken += n
            self.status = f"Reading the features again: {min(99, 100 * n_taken // n_rows)} %"

        with suppress(_SupersededError):
            features = _read_all(sae, on, self._n_contexts, taken=taken)
            self._all = features
            self._show_all(version)
            self._sae_has_changed()


def listed(order: Order, columns: NDArray[np.float32], *, show_dead: bool) -> list[int]:
    """The features in an order of the list, as the page sorts them; ``columns`` is ``(d_sae, 3)``, `COLUMNS`."""
    values = columns[:, COLUMNS.index(order.column)] if order.column else np.zeros(len(columns))
    features = np.argsort(order.sign * values, kind="stable")
    if not show_dead:
        features = features[columns[features, COLUMNS.index("density")] > 0]
    return cast(list[int], features.tolist())


def searched_text(reading: FeatureReading) -> str:
    """What is searched of a feature: its contexts and the tokens that it raises, with a mark between them."""
    contexts = ("".join(context.tokens) for context in reading.contexts)
    return "\0".join(map(searchable, (*contexts, *(effect.token for effect in reading.raised))))


def found_in(texts: Sequence[str], search: str) -> list[int]:
    """The features whose `searched_text` has ``search`` in it; none where it is blank."""
    wanted = searchable(search)
    return [feature for feature, text in enumerate(texts) if wanted in text] if wanted.strip() else []


def searchable(text: str) -> str:
    """What is compared when features are searched, here and in the front end: lower case, one space for white space.

    A feature is found where the text searched for is part of one of its contexts, or of one of the tokens it raises. A
    space in front means the beginning of a word; a text of nothing but white space looks for nothing.
    """
    return re.sub(r"[ \t\r\n]+", " ", text.lower())


class _Materials(NamedTuple):
    """What features are read on."""

    model: "TransformerBridge"
    store: ActivationStore
    sentiment: LabelledSplit | None


@dataclass(frozen=True)
class _Features:
    """All features of an SAE, as they were read together."""

    sae: SparseAutoencoder
    readings: tuple[FeatureReading, ...]
    histograms: NDArray[np.int64]
    """``(d_sae, N_BINS)``: tokens by activation, from 0 to each feature's largest."""
    sentiment: LabelledSplit | None
    n_tokens: int

    @cached_property
    def columns(self) -> NDArray[np.float32]:
        """``(d_sae, 3)``: `COLUMNS`."""
        rows = [[getattr(reading, name) for name in COLUMNS] for reading in self.readings]
        return np.array(rows, dtype=np.float32)  # None becomes NaN

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """What is searched, by feature."""
        return tuple(map(searched_text, self.readings))

    def summary(self) -> str:
        n_dead = sum(reading.density == 0 for reading in self.readings)
        dead = f"; {n_dead:,} of them are on for none" if n_dead else ""
        return f"{len(self.readings):,} features, read on {self.n_tokens:,} tokens{dead}."

    def as_dict(self, feature: int) -> dict[str, Any]:
        """A reading for the page, of plain lists and numbers; empty where there is no such feature."""
        if feature >= len(self.readings):
            return {}
        reading = self.readings[feature]
        return {
            "feature": reading.feature,
            "density": reading.density,
            "max_activation": reading.max_activation,
            "probe_weight": reading.probe_weight,
            "contexts": [{**context._asdict(), "tokens": list(context.tokens)} for context in reading.contexts],
            "raised": [effect._asdict() for effect in reading.raised],
            "lowered": [effect._asdict() for effect in reading.lowered],
            "nearest": [near._asdict() for near in reading.nearest],
            "histogram": self.histograms[feature].tolist(),
        }


class _SupersededError(Exception):
    """Ends a reading whose SAE has changed meanwhile, or whose widget was closed."""


class _Watched:
    """Rows of a store that say, whenever some are taken, how many."""

    def __init__(self, rows: Rows, taken: Callable[[int], None]) -> None:
        self._rows, self._taken = rows, taken

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        rows = self._rows[index]
        self._taken(len(rows))
        return rows


_PASSES = 3
"""Over the store: for the peaks, for what is around them, and for the histograms."""


@torch.no_grad()
def _read_all(
    sae: SparseAutoencoder,
    on: _Materials,
    n_contexts: int,
    *,
    progress: bool = False,
    taken: Callable[[int], None] | None = None,
) -> _Features:
    """Every feature of ``sae``; ``taken`` hears of each batch, and may raise to end it."""
    weights = None
    if on.sentiment is not None:
        train = on.sentiment.train
        weights = saelab.probe_weights(LabelledActivations(sae.encode(train.x.to(sae.W_enc)).cpu(), train.labels))
    store = on.store
    if taken is not None:
        store = replace(store, activations=cast(Tensor, _Watched(store.activations, taken)))
    readings = saelab.read_features(
        on.model, sae, store, n_contexts=n_contexts, probe_weights=weights, batch_size=BATCH_SIZE, progress=progress
    )
    histograms = _histograms(sae, store, torch.tensor([reading.max_activation for reading in readings]))
    return _Features(sae, tuple(readings), histograms, on.sentiment, len(store))


def _histograms(sae: SparseAutoencoder, store: ActivationStore, largest: Tensor) -> NDArray[np.int64]:
    """``(d_sae, N_BINS)``: how many tokens each feature is on for, by code, from 0 to its ``largest``."""
    counts = torch.zeros(len(largest) * N_BINS, dtype=torch.long)
    for start in range(0, len(store), BATCH_SIZE):
        codes = sae.encode(store.activations[start : start + BATCH_SIZE].to(sae.W_enc)).float().cpu()
        row, feature = (codes > 0).nonzero(as_tuple=True)
        bins = (codes[row, feature] / largest[feature] * N_BINS).long().clamp(max=N_BINS - 1)
        counts += torch.bincount(feature * N_BINS + bins, minlength=len(counts))
    return counts.view(len(largest), N_BINS).numpy()


def _orders(features: _Features) -> list[str]:
    """The keys of `ORDERS` that make sense: without a probe there are no weights to go by."""
    probed = features.readings[0].probe_weight is not None
    return [name for name, order in ORDERS.items() if probed or order.column != "probe_weight"]


def _first(store: ActivationStore, n: int) -> ActivationStore:
    columns = ("activations", "token_ids", "text_indices", "positions")
    return replace(store, **{name: getattr(store, name)[:n] for name in columns})


# The picture: a page of monospaced text, in units of its letters and lines

_FONT = "DejaVu Sans Mono"  # comes with matplotlib
_FONT_SIZE = 8.5
_LETTER = 0.602
"""Width of its letters, in font sizes."""
_PEAK_AT = 76
"""Letters before the token with the greatest activation: peaks stand below one another."""


def _feature_png(reading: FeatureReading, histogram: NDArray[np.int64]) -> bytes:
    """The contexts of a feature with shaded tokens, its density, effects and neighbours."""
    from matplotlib.figure import Figure  # no pyplot: its global state is not safe in a callback's thread
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.patches import Rectangle
    from PIL import Image  # comes with matplotlib, too

    drawable = get_font(findfont(_FONT)).get_charmap()

    def plain(text: str) -> str:
        escaped = text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
        return "".join(letter if ord(letter) in drawable else "\N{WHITE SQUARE}" for letter in escaped)

    n_lines = len(reading.contexts) + 7
    height = 0.2 * (n_lines + 1)
    figure = Figure(figsize=(9.6, height), dpi=100, facecolor="white")
    ax = figure.add_axes((0.01, 0.0, 0.98, 1.0))
    ax.set_axis_off()
    n_letters = int(0.98 * 9.6 * 72 / (_LETTER * _FONT_SIZE))
    ax.set_xlim(0, n_letters)
    ax.set_ylim(n_lines + 0.5, -0.5)
    write = partial(ax.text, va="center", color=INK, fontsize=_FONT_SIZE, family=_FONT, parse_math=False, clip_on=True)

    parts = [f"on for {reading.density:.3%} of tokens", f"largest activation {reading.max_activation:.2f}"]
    if reading.probe_weight is not None:
        parts.append(f"probe weight {reading.probe_weight:+.3f}")
    write(0, 0.2, f"Feature {reading.feature}: {', '.join(parts)}", weight="bold")
    for line, context in enumerate(reading.contexts, start=2):
        write(0, line, f"{context.activation:6.2f}")
        pieces = [plain(token) for token in context.tokens]
        left = _PEAK_AT - sum(map(len, pieces[: context.peak]))
        for index, (piece, activation) in enumerate(zip(pieces, context.activations, strict=True)):
            first, last = max(left, 8), min(left + len(piece), n_letters)
            if first < last:
                shade = Rectangle((first, line - 0.46), last - first, 0.92, linewidth=0, facecolor=COLORS["l0"])
                shade.set_alpha(0.45 * activation / reading.max_activation)
                ax.add_patch(shade)
                write(first, line, piece[first - left : last - left], weight="bold" if index == context.peak else None)
            left += len(piece)
    if not reading.contexts:
        write(0, 2, "on for no token of this store")
    facts = {
        "raises": [f"{plain(effect.token)!r} {effect.effect:+.2f}" for effect in reading.raised],
        "lowers": [f"{plain(effect.token)!r} {effect.effect:+.2f}" for effect in reading.lowered],
        "nearest": [str(near) for near in reading.nearest],
    }
    below = len(reading.contexts) + 3
    for line, (name, values) in enumerate(facts.items(), start=below):
        write(0, line, f"{name:<8} {', '.join(values[:5])}" if values else "")
    if histogram.any():
        bars = figure.add_axes((0.86, 0.2 / height, 0.12, 0.6 / height))
        bars.bar(np.arange(N_BINS), histogram, width=1.0, color=COLORS["l0"])
        bars.set_xticks([0, N_BINS], ["0", f"{reading.max_activation:.1f}"], fontsize=7, color=INK)
        bars.set_yticks([])
        bars.spines[["top", "right", "left"]].set_visible(False)
    drawn, small = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(64).save(small, format="png", optimize=True)  # text in few colours
    return small.getvalue()

"""The feature browser in Python, with no browser: what is read is what the library reads, and the traits move it."""

import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets
from PIL import Image
from saelab_widgets import FeatureBrowser, TrainingLab, feature_browser, materials
from saelab_widgets.feature_browser import COLUMNS, N_BINS, N_SHIPPED, searchable
from saelab_widgets.sources import HasSAE

import saelab
from saelab import StandardSAE
from saelab.data.activations import ActivationStore
from saelab.data.labelled import LabelledActivations, LabelledSplit

DEAD = 11


def sparse_sae(d_sae: int = 60, seed: int = 3, dead: int = DEAD) -> StandardSAE:
    """Random features, none of them on everywhere, one of them dead."""
    sae = StandardSAE(256, d_sae, seed=seed)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.fill_(-1.0)
        sae.b_enc[dead] = -1e6
    return sae


@pytest.fixture(scope="module")
def small(store: ActivationStore) -> ActivationStore:
    names = ("activations", "token_ids", "text_indices", "positions")
    return ActivationStore(
        scale=store.scale,
        model_name=store.model_name,
        hook=store.hook,
        **{name: getattr(store, name)[:1500] for name in names},
    )


@pytest.fixture(scope="module")
def sentiment(small: ActivationStore) -> LabelledSplit:
    """Labels that one feature decides, so that some weights are far from zero."""
    codes = sparse_sae().encode(small.activations[:400]).detach()
    labels = (codes[:, 7] > codes[:, 7].median()).long()
    part = LabelledActivations(small.activations[:400], labels)
    return LabelledSplit(part, part)


@pytest.fixture
def browser(model: Any, small: ActivationStore, sentiment: LabelledSplit) -> FeatureBrowser:
    return FeatureBrowser(sparse_sae(), small, model, sentiment=sentiment)


def listing(browser: FeatureBrowser) -> np.ndarray:
    return np.frombuffer(browser.listing, dtype=np.float32).reshape(-1, len(browser.columns))


class Source(HasSAE):
    """A widget that others follow, with a feature of its own, as far as following goes."""

    running = traitlets.Bool(False)
    feature = traitlets.Int(5)

    def __init__(self, sae: StandardSAE) -> None:
        super().__init__()
        self._sae = sae

    @property
    def sae(self) -> StandardSAE:
        return self._sae

    def become(self, sae: StandardSAE) -> None:
        self._sae = sae
        self._sae_has_changed()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


def test_the_page_of_a_feature_is_what_the_library_reads(
    browser: FeatureBrowser, model: Any, small: ActivationStore, sentiment: LabelledSplit
) -> None:
    sae = sparse_sae()
    weights = saelab.probe_weights(LabelledActivations(sae.encode(sentiment.train.x).detach(), sentiment.train.labels))
    expected = saelab.read_features(
        model, sae, small, features=[9], n_contexts=8, probe_weights=weights, progress=False
    )[0]
    browser.feature = 9
    page = browser.reading
    assert page["feature"] == 9 and page["density"] == expected.density
    assert page["max_activation"] == pytest.approx(expected.max_activation, abs=1e-5)
    assert page["probe_weight"] == pytest.approx(expected.probe_weight, rel=1e-4)
    assert [tuple(context["tokens"]) for context in page["contexts"]] == [c.tokens for c in expected.contexts]
    for context, other in zip(page["contexts"], expected.contexts, strict=True):
        assert context["activations"] == pytest.approx(list(other.activations), abs=1e-4)
        assert (context["text_index"], context["position"], context["peak"]) == (*other[:2], other.peak)
    assert [effect["token"] for effect in page["raised"]] == [effect.token for effect in expected.raised]
    assert [near["feature"] for near in page["nearest"]] == [near.feature for near in expected.nearest]
    assert browser.reading_of(9).contexts == browser._all.readings[9].contexts


def test_the_histogram_counts_every_token_on_which_the_feature_is_on(
    browser: FeatureBrowser, small: ActivationStore
) -> None:
    codes = sparse_sae().encode(small.activations[:]).detach()
    for feature in (2, 9, 30):
        browser.feature = feature
        on = codes[codes[:, feature] > 0, feature].numpy()
        counts, _ = np.histogram(on, bins=N_BINS, range=(0, float(on.max())))
        assert sum(browser.reading["histogram"]) == len(on) > 0
        assert np.abs(counts - browser.reading["histogram"]).sum() <= 2  # at an edge, rounding decides
    browser.feature = DEAD
    assert browser.reading["histogram"] == [0] * N_BINS and browser.reading["contexts"] == []


def test_the_list_has_density_largest_activation_probe_weight_and_top_token_of_every_feature(
    browser: FeatureBrowser,
) -> None:
    frame = browser.frame()
    assert len(frame) == 60 and browser.columns == list(COLUMNS)
    assert listing(browser) == pytest.approx(frame[list(COLUMNS)].to_numpy(dtype=np.float32))
    assert browser.top_tokens == list(frame.top_token) and browser.top_tokens[DEAD] == ""
    assert frame.density[DEAD] == 0 and list(frame.feature) == list(range(60))


@pytest.mark.parametrize("order", ["density", "max_activation", "probe_positive", "probe_negative", "index"])
def test_the_first_of_the_list_are_shipped_in_its_order(browser: FeatureBrowser, order: str) -> None:
    browser.order = order
    frame = browser.frame()
    column, ascending = {
        "density": ("density", False),
        "max_activation": ("max_activation", False),
        "probe_positive": ("probe_weight", False),
        "probe_negative": ("probe_weight", True),
        "index": ("feature", True),
    }[order]
    rows = frame[frame.density > 0].sort_values([column, "feature"], ascending=[ascending, True])
    shipped = [reading["feature"] for reading in browser.readings]
    assert shipped == list(rows.feature)[:N_SHIPPED] and DEAD not in shipped
    assert browser.readings[3] == browser._all.as_dict(shipped[3])


def test_dead_features_are_listed_when_asked_for(browser: FeatureBrowser) -> None:
    browser.order = "index"
    browser.show_dead = True
    assert [reading["feature"] for reading in browser.readings] == list(range(N_SHIPPED))


def test_the_first_feature_is_the_first_of_the_list_or_the_one_asked_for(
    browser: FeatureBrowser, model: Any, small: ActivationStore
) -> None:
    weights = browser.frame().probe_weight
    assert browser.order == "probe_positive" and weights[browser.feature] == weights.max() > 0
    plain = FeatureBrowser(sparse_sae(), small, model, feature=21)
    assert plain.feature == plain.reading["feature"] == 21


def test_without_a_probe_there_are_no_weights_to_order_by(model: Any, small: ActivationStore) -> None:
    browser = FeatureBrowser(sparse_sae(), small, model)
    assert [order["value"] for order in browser.orders] == ["max_activation", "density", "index"]
    assert browser.reading["probe_weight"] is None and np.isnan(listing(browser)[:, 2]).all()
    with pytest.raises(traitlets.TraitError, match="max_activation, density, index, not 'probe_positive'"):
        browser.order = "probe_positive"


def test_search_finds_contexts_and_raised_tokens_whatever_the_case(browser: FeatureBrowser) -> None:
    frame = browser._all.readings
    for word in ("The ", " mOVie", ".", "ing"):
        expected = [
            reading.feature
            for reading in frame
            if any(searchable(word) in searchable("".join(context.tokens)) for context in reading.contexts)
            or any(searchable(word) in searchable(effect.token) for effect in reading.raised)
        ]
        browser.search = word
        assert browser.found == {"search": word, "features": expected} and 0 < len(expected) < 60
    browser.search = "zzqx"
    assert browser.found == {"search": "zzqx", "features": []}
    only_raised = browser._all.readings[4].raised[0].token
    browser.search = only_raised.upper()
    assert 4 in browser.found["features"]
    browser.search = " \n"
    assert browser.found["features"] == []  # nothing is looked for, and the page lists all


def test_what_is_compared_is_lower_case_with_one_space_for_white_space() -> None:
    assert searchable("A\n\n \tB\r\n<BR> É") == "a b <br> é"


def test_choosing_and_searching_answer_at_once(browser: FeatureBrowser) -> None:
    start = time.monotonic()
    for feature in range(50):
        browser.feature = feature
        browser.search = str(feature)
    assert (time.monotonic() - start) / 50 < 0.05


def test_a_source_that_changes_is_read_again_and_keeps_the_feature(model: Any, small: ActivationStore) -> None:
    source = Source(sparse_sae())
    browser = FeatureBrowser(source, small, model)
    assert browser.feature == source.feature == 5
    before, version = browser.reading, browser.sae_version
    source.become(sparse_sae(seed=8))
    assert browser.stale  # at once
    until(lambda: not browser.stale)
    browser.wait()
    assert browser.feature == 5 and browser.reading != before and browser.sae_version > version
    assert torch.equal(browser.sae.W_dec, source.sae.W_dec) and browser.sae is not source.sae
    assert browser.status.startswith("60 features") and not browser.error
    direct = FeatureBrowser(sparse_sae(seed=8), small, model, feature=5)
    assert browser.reading == direct.reading and browser.listing == direct.listing


def test_of_changes_that_come_quickly_only_the_last_is_read(
    model: Any, small: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(sparse_sae())
    browser = FeatureBrowser(source, small, model)
    read: list[object] = []
    real = saelab.read_features

    def counted(*args: Any, **settings: Any) -> Any:
        read.append(args)
        return real(*args, **settings)

    monkeypatch.setattr(saelab, "read_features", counted)
    monkeypatch.setattr(feature_browser, "SETTLE_SECONDS", 2.0)  # changes come quickly even on a machine that is busy
    changes = [sparse_sae(seed=seed) for seed in range(20, 26)]
    for sae in changes:
        source.become(sae)
    browser.wait()
    assert len(read) == 1 and torch.equal(browser.sae.W_dec, source.sae.W_dec) and not browser.stale


def test_a_source_that_trains_is_read_again_when_asked_or_when_it_stops(model: Any, small: ActivationStore) -> None:
    source = Source(sparse_sae())
    browser = FeatureBrowser(source, small, model)
    source.running = True
    source.become(sparse_sae(seed=8))
    browser.wait()
    assert browser.stale and not torch.equal(browser.sae.W_dec, source.sae.W_dec)
    browser._receive(browser, {"kind": "read_again", "id": 1}, [])
    source.become(sparse_sae(seed=9))  # the next picture, at which it is between two steps
    browser.wait()
    assert torch.equal(browser.sae.W_dec, source.sae.W_dec) and not browser.stale
    source.become(sparse_sae(seed=10))
    browser.wait()
    assert browser.stale
    source.running = False
    browser.wait()
    assert torch.equal(browser.sae.W_dec, source.sae.W_dec) and not browser.stale


def test_the_feature_is_one_with_that_of_the_source(model: Any, small: ActivationStore) -> None:
    source = Source(sparse_sae())
    browser = FeatureBrowser(source, small, model, feature=12)
    assert source.feature == 12
    browser.feature = 20
    assert source.feature == 20
    source.feature = 31
    assert browser.feature == browser.reading["feature"] == 31


def test_a_source_whose_sae_becomes_smaller_or_larger(model: Any, small: ActivationStore) -> None:
    source = Source(sparse_sae())
    browser = FeatureBrowser(source, small, model, feature=50)
    source.become(sparse_sae(d_sae=30))
    browser.wait()
    assert browser.feature == browser.reading["feature"] < 30 and len(browser.top_tokens) == 30
    source.running = True
    source.become(sparse_sae(d_sae=90))
    source.feature = 80  # the source is ahead
    assert browser.feature == 80 and browser.reading == {} and browser._picture().startswith(b"\x89PNG")
    assert "30 features" in browser.to_html()
    source.running = False
    browser.wait()
    assert browser.reading["feature"] == 80


def test_what_goes_wrong_while_reading_again_is_shown(model: Any, small: ActivationStore) -> None:
    source = Source(sparse_sae())
    browser = FeatureBrowser(source, small, model)
    source.become(StandardSAE(8, 20))
    browser.wait()
    assert "width 256, but this SAE was made for d_in=8" in browser.error and browser.stale
    source.become(sparse_sae(seed=8))
    browser.wait()
    assert not browser.error and not browser.stale


def test_a_closed_browser_is_not_read_again(model: Any, small: ActivationStore) -> None:
    source = Source(sparse_sae())
    browser = FeatureBrowser(source, small, model)
    browser.close()
    source.running = True
    source.become(sparse_sae(seed=8))
    source.running = False
    browser.wait()
    assert torch.equal(browser.sae.W_dec, sparse_sae().W_dec)
    browser.close()  # a second time does nothing


def test_it_follows_a_lab(model: Any, small: ActivationStore, store: ActivationStore) -> None:
    lab = TrainingLab(store, d_sae=32, warm_up_steps=5)
    browser = FeatureBrowser(lab, small, model)
    lab.take_step()
    until(lambda: browser.stale)
    browser.wait()
    assert not browser.stale and torch.equal(browser.sae.W_dec, lab.sae.W_dec)
    assert browser.test_x is lab.test_x and browser.sentiment is None


def test_with_no_arguments_it_reads_the_default_sae(
    monkeypatch: pytest.MonkeyPatch, small: ActivationStore, sentiment: LabelledSplit
) -> None:
    class Snippets:
        def split(self) -> LabelledSplit:
            return sentiment

    sae = sparse_sae()
    sae.trained_on = small.trained_on
    monkeypatch.setattr(materials, "default_sae", lambda: (sae, small))
    monkeypatch.setattr(materials, "snippets_at", lambda *at: Snippets() if at == small.trained_on else None)
    browser = FeatureBrowser(n_tokens=1000)
    assert browser.status == "60 features, read on 1,000 tokens; 1 of them are on for none."
    assert browser.sentiment is sentiment and browser.reading["probe_weight"] > 0


def test_an_sae_from_a_file_is_read_on_what_it_was_trained_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: ActivationStore, sentiment: LabelledSplit
) -> None:
    asked: list[tuple[object, ...]] = []

    def activations_at(*at: object) -> ActivationStore:
        asked.append(at)
        return small

    monkeypatch.setattr(materials, "activations_at", activations_at)
    sae = sparse_sae()
    sae.trained_on = small.trained_on
    saelab.save(sae, tmp_path / "sae.safetensors")
    browser = FeatureBrowser(tmp_path / "sae.safetensors", sentiment=sentiment, n_tokens=1234)
    assert asked == [(small.model_name, small.hook, 1234, small.scale)]
    assert len(browser.top_tokens) == 60


def test_a_saved_page_holds_the_first_of_the_list_the_chosen_one_and_its_nearest(
    browser: FeatureBrowser, tmp_path: Path
) -> None:
    browser.feature = browser._listed()[-1]
    page = browser.save_html(tmp_path / "page.html").read_text(encoding="utf-8")
    shipped = {reading["feature"] for reading in browser.readings}
    assert {near["feature"] for near in browser.reading["nearest"]} <= shipped and len(shipped) >= N_SHIPPED
    assert f'"feature": {browser.feature},' in page and "FeatureBrowser(60 features, feature" in page


def test_where_no_widget_can_run_there_is_a_picture(browser: FeatureBrowser) -> None:
    for feature in (browser.feature, DEAD):
        browser.feature = feature
        bundle = browser._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        image = Image.open(BytesIO(data["image/png"]))
        assert image.size[0] == 960 and len(data["image/png"]) < 60_000
        assert len(image.convert("RGB").getcolors() or []) > 4
        assert data["text/plain"] == f"FeatureBrowser(60 features, feature {feature})"


@pytest.mark.filterwarnings("error")
def test_a_picture_draws_any_text_and_takes_none_for_mathematics(browser: FeatureBrowser) -> None:
    from dataclasses import replace

    from saelab_widgets.feature_browser import _feature_png

    reading = browser.reading_of(browser.feature)
    tokens = ("$x_{", "\n", "", "\U0001f600", "\u65e5\u672c", "$", "\x1b\ufffd")
    context = reading.contexts[0]._replace(tokens=tokens, activations=(0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 0.0), peak=2)
    odd = replace(reading, contexts=(context,))
    assert _feature_png(odd, browser._all.histograms[0]).startswith(b"\x89PNG")


def test_wrong_input_gets_a_sentence(model: Any, small: ActivationStore) -> None:
    sae = sparse_sae()
    with pytest.raises(TypeError, match="a widget that has one, not int"):
        FeatureBrowser(3, small, model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not know which activations"):
        FeatureBrowser(sae)
    with pytest.raises(ValueError, match="d_in=8"):
        FeatureBrowser(StandardSAE(8, 20), small, model)
    with pytest.raises(ValueError, match="features 0 to 59, not 60"):
        FeatureBrowser(sae, small, model, feature=60)
    with pytest.raises(ValueError, match="n_contexts must be at least 1, not 0"):
        FeatureBrowser(sae, small, model, n_contexts=0)
    with pytest.raises(ValueError, match="n_tokens must be at least 1, not 0"):
        FeatureBrowser(sae, n_tokens=0)
    browser = FeatureBrowser(sae, small, model, feature=1)
    with pytest.raises(traitlets.TraitError, match="features 0 to 59, not 60"):
        browser.feature = 60
    with pytest.raises(traitlets.TraitError):
        browser.feature = -1
    with pytest.raises(ValueError, match="features 0 to 59, not -1"):
        browser.reading_of(-1)
    assert browser.feature == 1

"""The front end of FeatureBrowser, in a real browser on a real widget's state: no Jupyter, no kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page
from saelab_widgets import FeatureBrowser

from saelab import StandardSAE
from saelab.data.activations import ActivationStore
from saelab.data.labelled import LabelledActivations, LabelledSplit

Mount = Callable[..., Page]
State = dict[str, Any]
DEAD = 11
N = 90


@pytest.fixture(scope="module")
def browser_widget(model: Any, store: ActivationStore) -> FeatureBrowser:
    names = ("activations", "token_ids", "text_indices", "positions")
    columns = {name: getattr(store, name)[:1200] for name in names}
    small = ActivationStore(scale=store.scale, model_name=store.model_name, hook=store.hook, **columns)
    sae = StandardSAE(256, N, seed=3)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.fill_(-0.3)
        sae.b_enc[DEAD] = -1e6
    codes = sae.encode(small.activations[:400]).detach()
    part = LabelledActivations(small.activations[:400], (codes[:, 7] > codes[:, 7].median()).long())
    return FeatureBrowser(sae, small, model, sentiment=LabelledSplit(part, part))


@pytest.fixture
def state(browser_widget: FeatureBrowser) -> State:
    """A copy of the state that the kernel sends, which a test may change."""
    hidden = ("_esm", "_css", "layout", "tabbable", "tooltip")
    return {name: value for name, value in browser_widget.get_state().items() if name not in hidden}


def reading(widget: FeatureBrowser, feature: int) -> State:
    return widget._all.as_dict(feature)


def answer(page: Page, widget: FeatureBrowser) -> None:
    """Do what the kernel does when a feature has been chosen."""
    page.evaluate("(value) => model.set('reading', value)", reading(widget, trait(page, "feature")))
    page.wait_for_selector(f'.saelab-feature[data-shows="{trait(page, "feature")}"][aria-busy="false"]')


def trait(page: Page, name: str) -> Any:
    return page.evaluate("(name) => model.get(name)", name)


def title(page: Page) -> str | None:
    return page.locator('[data-show="title"]').text_content()


def features_list(page: Page) -> Locator:
    return page.get_by_role("listbox", name="Features", exact=True)


def rows(page: Page) -> list[int]:
    """Features of the rows that are in the document, from the top."""
    found = page.locator(".saelab-list-row").evaluate_all(
        "(all) => all.map((e) => [Number(e.ariaPosInSet), Number(e.dataset.feature)])"
    )
    return [feature for _, feature in sorted(found)]


def chosen(page: Page) -> int | None:
    """The feature of the row that the list names to screen readers."""
    found: int | None = page.evaluate(
        """() => { const list = document.querySelector('[data-list]');
                   const row = document.getElementById(list.getAttribute('aria-activedescendant'));
                   return row === null ? null : Number(row.dataset.feature); }"""
    )
    return found


def context(page: Page, index: int) -> Locator:
    return page.locator(".saelab-context").nth(index)


def odd_reading(feature: int) -> State:
    """Markup, right-to-left text, emoji, white space, parts of characters, and a token as long as a line."""

    def line(tokens: list[str], peak: int) -> State:
        activations = [2.0 if at == peak else 0.25 * (at % 3) for at in range(len(tokens))]
        return {"text_index": 1, "position": 9, "tokens": tokens, "activations": activations, "peak": peak}

    return {
        "feature": feature,
        "density": 0.00002,
        "max_activation": 2.0,
        "probe_weight": -0.5,
        "contexts": [
            line(["<img src=x onerror=alert(1)>", " <b>", "bold", "</b>", "&amp;"], 2),
            line(["זה", " סרט", " נפלא", ",", " great"], 1),
            line([" a", "", "", "👩‍🚀", " yes"], 3),
            line(["\n\n", "\t", "  ", "\u202eabc", "\ufffd", " end"], 0),
            line([" the", "-" * 200, " after"], 1),
        ],
        "raised": [
            {"token": token, "token_id": 7, "effect": 0.5} for token in ("<i>", "\n", " ", "", "שלום", "-" * 99)
        ],
        "lowered": [{"token": " the", "token_id": 8, "effect": -0.25}],
        "nearest": [{"feature": 2, "cosine": 0.5}],
        "histogram": [0, 1, *[2] * 22],
    }


def test_the_page_shows_what_python_knows_about_the_feature(
    mount: Mount, state: State, browser_widget: FeatureBrowser
) -> None:
    page = mount("feature_browser", state)
    feature = state["feature"]
    row = browser_widget.frame().loc[feature]
    assert title(page) == f"Feature {feature}" and trait(page, "feature") == feature
    for name, value in (
        ("density", 100 * row.density),
        ("max_activation", row.max_activation),
        ("probe_weight", row.probe_weight),
    ):
        shown = page.locator(f'[data-chart="{name}"]').get_attribute("data-value")
        assert float(shown or "nan") == pytest.approx(value, rel=1e-6)
    assert (
        page.locator('[data-chart="max_activation"] .saelab-chart-value').text_content() == f"{row.max_activation:.2f}"
    )
    assert page.locator('[data-show="verdict"]').text_content() == "speaks for a positive verdict"
    expected = browser_widget.reading_of(feature)
    assert page.locator(".saelab-context").count() == len(expected.contexts) == 8
    for index, one in enumerate(expected.contexts):
        tokens = context(page, index).locator("[data-token]")
        assert tokens.evaluate_all("(all) => all.map((e) => e.title)") == [f"{value:.2f}" for value in one.activations]
        shades = tokens.evaluate_all("(all) => all.map((e) => Number(e.style.getPropertyValue('--shade')))")
        assert shades == pytest.approx([value / expected.max_activation for value in one.activations])
        assert tokens.nth(one.peak).get_attribute("data-peak") == ""
    assert page.locator('[data-effects="raised"] li').count() == 8
    bars = page.locator(".saelab-bars rect").evaluate_all("(all) => all.map((e) => e.textContent)")
    counts = [int(bar.split(": ")[1].split()[0].replace(",", "")) for bar in bars]
    assert counts == reading(browser_widget, feature)["histogram"]


def test_the_greatest_activation_of_every_context_is_in_view_whatever_the_width(mount: Mount, state: State) -> None:
    state["reading"] = odd_reading(state["feature"])
    for width in (1000, 340):
        page = mount("feature_browser", state, width=width)
        page.wait_for_selector("[data-peak]")
        inside = page.locator(".saelab-context").evaluate_all(
            """(all) => all.map((line) => {
                const box = line.getBoundingClientRect();
                const peak = line.querySelector('[data-peak]').getBoundingClientRect();
                return Math.min(peak.right, box.right) - Math.max(peak.left, box.left) > 4;
            })"""
        )
        assert inside == [True] * 5
        middles = page.locator("[data-peak]").evaluate_all(
            "(all) => all.map((e) => { const b = e.getBoundingClientRect(); return (b.left + b.right) / 2; })"
        )
        assert max(middles) - min(middles) < 2  # one below the other


def test_markup_emoji_and_right_to_left_text_are_shown_as_text(mount: Mount, state: State) -> None:
    state["top_tokens"] = ["<b>x</b>", "\n", "  ", *state["top_tokens"][3:]]
    page = mount("feature_browser", {**state, "order": "index", "feature": 0, "reading": odd_reading(0)})
    assert page.locator(".saelab img, .saelab b, .saelab i").count() == 0
    assert context(page, 0).text_content() == "<img src=x onerror=alert(1)> <b>bold</b>&amp;"
    assert context(page, 1).text_content() == "זה סרט נפלא, great"
    assert context(page, 1).evaluate("(e) => getComputedStyle(e).direction") == "rtl"
    assert context(page, 0).evaluate("(e) => getComputedStyle(e).direction") == "ltr"
    assert context(page, 2).text_content() == " a👩‍🚀 yes"
    assert context(page, 3).text_content() == "↵↵⇥  \\u202eabc\ufffd end"
    assert context(page, 3).locator("[data-token]").nth(2).bounding_box()["width"] > 5  # type: ignore[index]
    part = context(page, 2).locator("[data-token]").nth(1)
    assert part.get_attribute("aria-label") == "begins a character, 0.25"
    assert part.bounding_box()["width"] > 3  # type: ignore[index]
    names = page.locator('[data-effects="raised"] .saelab-token-name').all_text_contents()
    assert names == ["<i>", "↵", "␣", "∅", "שלום", "-" * 99]
    listed = page.locator(".saelab-list-row .saelab-token-name").all_text_contents()
    assert listed[:3] == ["<b>x</b>", "↵", "␣␣"]
    assert page.locator('[data-chart="density"] .saelab-chart-value').text_content() == "<0.01"


def test_a_token_tells_its_activation_under_the_pointer_and_with_the_focus(
    mount: Mount, state: State, browser_widget: FeatureBrowser
) -> None:
    page = mount("feature_browser", state)
    one = browser_widget.reading_of(state["feature"]).contexts[0]
    readout = page.locator('[data-show="token"]')
    hint = readout.text_content() or ""
    assert "Point at a token" in hint
    tokens = context(page, 0).locator("[data-token]")
    tokens.nth(one.peak).hover()
    assert (readout.text_content() or "").endswith(f"{one.activations[one.peak]:.2f}")
    page.mouse.move(5, 5)
    assert readout.text_content() == hint
    tokens.nth(one.peak).focus()
    page.keyboard.press("ArrowLeft")
    before = one.peak - 1
    assert (readout.text_content() or "").endswith(f"{one.activations[before]:.2f}")
    focused = page.locator(":focus")
    name = one.tokens[before].strip()
    assert focused.get_attribute("aria-label") == f"{name}, {one.activations[before]:.2f}"
    assert focused.get_attribute("aria-selected") == "true"
    assert context(page, 0).locator('[tabindex="0"]').count() == 1
    page.keyboard.press("Home")
    assert page.locator(":focus").get_attribute("data-token") == "0"
    page.keyboard.press("End")
    assert page.locator(":focus").get_attribute("data-token") == str(len(one.tokens) - 1)
    page.keyboard.press("ArrowRight")  # at the end it stays
    assert page.locator(":focus").get_attribute("data-token") == str(len(one.tokens) - 1)
    page.keyboard.press("ArrowDown")
    assert page.evaluate("() => document.activeElement.closest('.saelab-context').ariaLabel").startswith("Context 2:")


def test_arrow_keys_follow_the_direction_of_the_text(mount: Mount, state: State) -> None:
    state["reading"] = odd_reading(state["feature"])
    page = mount("feature_browser", state)
    context(page, 1).locator("[data-peak]").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(":focus").get_attribute("data-token") == "2"


def test_the_list_is_in_pythons_order(mount: Mount, state: State, browser_widget: FeatureBrowser) -> None:
    page = mount("feature_browser", state)
    frame = browser_widget.frame()
    alive = frame[frame.density > 0]
    for order, column, ascending in (
        ("probe_positive", "probe_weight", False),
        ("probe_negative", "probe_weight", True),
        ("max_activation", "max_activation", False),
        ("density", "density", False),
        ("index", "feature", True),
    ):
        page.locator('[data-select="order"]').select_option(order)
        assert trait(page, "order") == order
        expected = list(alive.sort_values([column, "feature"], ascending=[ascending, True]).feature)
        page.wait_for_selector(f'[aria-posinset="1"][data-feature="{expected[0]}"]')  # from its top
        page.wait_for_selector('[aria-posinset="12"]')
        assert rows(page)[:12] == expected[:12]
    first = page.locator('[data-feature="0"] > *').all_text_contents()
    assert first[0] == "0" and first[2] == f"{100 * frame.density[0]:.2f}%"
    assert first[1] == frame.top_token[0]


def test_dead_features_appear_when_asked_for(mount: Mount, state: State, browser_widget: FeatureBrowser) -> None:
    page = mount("feature_browser", {**state, "order": "index", "feature": 0})
    count = page.locator('[data-show="count"]')
    assert DEAD not in rows(page) and count.text_content() == f"{N - 1} of {N} features"
    page.locator('[data-toggle="show_dead"]').check()
    page.wait_for_selector(f'[data-feature="{DEAD}"]')
    assert trait(page, "show_dead") is True and count.text_content() == f"{N} of {N} features"
    page.locator(f'[data-feature="{DEAD}"]').click()
    answer(page, browser_widget)
    assert "dead feature" in (page.locator('[data-show="note"]').text_content() or "")
    assert page.locator(".saelab-context").count() == 0


def test_a_click_in_the_list_chooses_a_feature_and_the_kernel_answers(
    mount: Mount, state: State, browser_widget: FeatureBrowser
) -> None:
    state["readings"] = []
    page = mount("feature_browser", state)
    before = title(page)
    feature = rows(page)[4]
    page.locator(f'[data-feature="{feature}"]').click()
    assert trait(page, "feature") == feature and chosen(page) == feature
    assert page.evaluate("() => model.saved.at(-1)") == {"feature": feature}
    assert title(page) == before and page.locator('.saelab-feature[aria-busy="true"]').count() == 1
    answer(page, browser_widget)
    assert title(page) == f"Feature {feature}"


def test_what_was_shipped_is_shown_without_waiting_for_the_kernel(mount: Mount, state: State) -> None:
    page = mount("feature_browser", state)
    feature = rows(page)[4]
    page.locator(f'[data-feature="{feature}"]').click()
    assert title(page) == f"Feature {feature}"
    assert page.locator('.saelab-feature[aria-busy="false"]').count() == 1


def test_the_keyboard_leads_through_the_list(mount: Mount, state: State) -> None:
    page = mount("feature_browser", {**state, "order": "density"})
    page.locator('[data-select="order"]').select_option("index")
    box = features_list(page)
    page.locator('[aria-posinset="1"][data-feature="0"]').click()
    order = [rows(page)[0]]
    box.focus()
    assert box.get_attribute("data-lm-suppress-shortcuts") == "true"
    page.keyboard.press("ArrowDown")
    order.append(trait(page, "feature"))
    assert order[1] == rows(page)[1] and chosen(page) == order[1]
    page.keyboard.press("End")
    last = trait(page, "feature")
    row = page.locator(f'[data-feature="{last}"]')
    row.wait_for()
    assert row.get_attribute("aria-posinset") == row.get_attribute("aria-setsize") == str(N - 1)
    page.keyboard.press("PageUp")
    position = page.locator('[aria-selected="true"].saelab-list-row').get_attribute("aria-posinset")
    assert 50 < int(position or 0) < N - 10
    page.keyboard.press("Home")
    assert trait(page, "feature") == order[0] and chosen(page) == order[0]
    page.keyboard.press("ArrowUp")
    assert trait(page, "feature") == order[0]
    visible = page.evaluate(
        """() => { const box = document.querySelector('[data-list]').getBoundingClientRect();
                   const row = document.querySelector('.saelab-list-row[aria-selected=true]').getBoundingClientRect();
                   return row.top >= box.top && row.bottom <= box.bottom + 1; }"""
    )
    assert visible


def many_features(state: State, n: int) -> State:
    columns = torch.rand(n, 3)
    return {**state, "listing": columns.numpy().tobytes(), "top_tokens": [f" t{i}" for i in range(n)]}


def test_of_2048_features_only_those_in_view_are_in_the_document(mount: Mount, state: State) -> None:
    page = mount("feature_browser", many_features(state, 2048))
    assert len(rows(page)) < 60
    box = features_list(page)
    box.evaluate("(e) => { e.scrollTop = 25 * 1000; }")
    page.wait_for_selector('[aria-posinset="1005"]')
    assert len(rows(page)) < 60
    assert chosen(page) == trait(page, "feature")  # out of view, but still named
    spent = page.evaluate(
        """async () => { const list = document.querySelector('[data-list]'); list.focus();
            const start = performance.now();
            for (let i = 0; i < 20; i++) {
                list.dispatchEvent(new KeyboardEvent('keydown', { key: 'PageDown', bubbles: true, cancelable: true }));
                await new Promise((done) => requestAnimationFrame(done));
            }
            return (performance.now() - start) / 20; }"""
    )
    assert spent < 200  # a frame takes 16 ms; the machine may be busy
    assert int(page.locator('.saelab-list-row[aria-selected="true"]').get_attribute("aria-posinset") or 0) > 300


def test_previous_next_the_number_and_the_nearest_lead_to_features(
    mount: Mount, state: State, browser_widget: FeatureBrowser
) -> None:
    page = mount("feature_browser", state)
    order = rows(page)
    previous, following = page.locator('[data-action="previous"]'), page.locator('[data-action="next"]')
    assert previous.is_disabled()  # the first of the list is chosen
    following.click()
    assert trait(page, "feature") == order[1] and not previous.is_disabled()
    following.focus()
    page.keyboard.press("Enter")
    assert trait(page, "feature") == order[2]
    previous.click()
    assert trait(page, "feature") == order[1]
    number = page.locator('[data-number="feature"]')
    number.fill("17")
    number.press("Enter")
    assert trait(page, "feature") == 17
    number.fill("9999")
    number.press("Enter")
    assert trait(page, "feature") == N - 1 and number.input_value() == str(N - 1)
    answer(page, browser_widget)
    near = reading(browser_widget, N - 1)["nearest"]
    button = page.locator(".saelab-near").first
    top = browser_widget.top_tokens[near[0]["feature"]].strip()
    assert (
        button.get_attribute("aria-label")
        == f"Go to feature {near[0]['feature']}, {top}, cosine {near[0]['cosine']:.2f}"
    )
    button.focus()
    page.keyboard.press("Space")
    assert trait(page, "feature") == near[0]["feature"]


def test_typing_searches_once_it_rests_and_the_list_has_what_was_found(mount: Mount, state: State) -> None:
    page = mount("feature_browser", state)
    box = page.get_by_role("searchbox", name="Search")
    box.press_sequentially("the", delay=20)
    page.wait_for_function("() => model.get('search') === 'the'")
    searches = [save["search"] for save in page.evaluate("() => model.saved") if "search" in save]
    assert searches == ["the"]
    count = page.locator('[data-show="count"]')
    page.wait_for_function("() => document.querySelector('[data-show=count]').textContent.startsWith('Searching')")
    page.evaluate("() => model.set('found', { search: 'the', features: [3, 5, 20] })")
    page.wait_for_function("() => document.querySelectorAll('.saelab-list-row').length === 3")
    assert sorted(rows(page)) == [3, 5, 20] and count.text_content() == f"3 of {N} features have “the”"
    page.locator('[data-action="next"]').click()
    assert trait(page, "feature") == rows(page)[0]
    box.fill("zzz")
    page.wait_for_function("() => model.get('search') === 'zzz'")
    page.evaluate("() => model.set('found', { search: 'zzz', features: [] })")
    page.wait_for_function("() => document.querySelectorAll('.saelab-list-row').length === 0")
    assert count.text_content() == "No feature has “zzz” in its top contexts or among the tokens it raises."
    assert page.locator('[data-action="next"]').is_disabled()
    page.evaluate("() => model.set('search', '')")  # from a cell
    page.wait_for_function("() => document.querySelectorAll('.saelab-list-row').length > 10")
    assert box.input_value() == ""


def test_without_a_kernel_what_was_shipped_is_searched_as_python_does(
    mount: Mount, state: State, browser_widget: FeatureBrowser
) -> None:
    page = mount("feature_browser", {**state, "kernel": False, "show_dead": True})
    shipped = {one["feature"] for one in state["readings"]} | {state["feature"]}
    for text in ("the", " MOV", "<br", ".", "\n a", "zzz", "Ing "):
        browser_widget.search = text
        expected = shipped & set(browser_widget.found["features"])
        page.evaluate("(text) => model.set('search', text)", text)
        page.wait_for_function(
            "(n) => (document.querySelector('[aria-setsize]')?.ariaSetSize ?? '0') === String(n)", arg=len(expected)
        )
        assert set(rows(page)) <= expected
    browser_widget.search = ""


def test_a_standalone_page_browses_what_it_holds_and_says_what_needs_a_kernel(
    page: Page, browser_widget: FeatureBrowser, tmp_path: Path
) -> None:
    html = browser_widget.save_html(tmp_path / "page.html").read_text(encoding="utf-8")
    page.route("http://page.test/", lambda route: route.fulfill(content_type="text/html; charset=utf-8", body=html))
    page.goto("http://page.test/")
    page.wait_for_selector(f'.saelab-feature[data-shows="{browser_widget.feature}"]')
    second = rows(page)[1]
    page.locator(f'[data-feature="{second}"]').click()
    assert title(page) == f"Feature {second}"
    value = page.locator('[data-chart="max_activation"]').get_attribute("data-value")
    assert float(value or "nan") == pytest.approx(browser_widget.frame().max_activation[second], rel=1e-6)
    features_list(page).press("End")
    away = browser_widget._listed()[-1]
    assert away not in {one["feature"] for one in browser_widget.readings}
    note = page.locator('[data-show="note"]')
    assert f"Feature {away} needs a kernel" in (note.text_content() or "")
    assert not page.locator(".saelab-feature-body").is_visible()
    features_list(page).press("Home")
    assert page.locator(".saelab-feature-body").is_visible()
    box = page.get_by_role("searchbox", name="Search")
    box.fill("zzqx")
    page.wait_for_function("() => document.querySelectorAll('.saelab-list-row').length === 0")
    assert "in this page has “zzqx”" in (page.locator('[data-show="count"]').text_content() or "")


def test_a_changed_sae_is_announced_and_can_be_read_again(mount: Mount, state: State) -> None:
    page = mount("feature_browser", state)
    button = page.locator('[data-action="read_again"]')
    assert not button.is_visible()
    page.evaluate("() => model.set('stale', true)")
    assert "has changed" in (page.locator('[data-show="stale"]').text_content() or "")
    button.click()
    assert page.evaluate("() => model.sent.at(-1)") == {"kind": "read_again", "id": 2}
    page.evaluate("() => model.set('stale', false)")
    assert not button.is_visible()


def test_new_readings_replace_list_and_page(mount: Mount, state: State) -> None:
    page = mount("feature_browser", state)
    other = odd_reading(state["feature"])
    other["feature"] = 1
    changed = {"top_tokens": [" new"] * 3, "readings": [], "reading": other, "feature": 1, "order": "index"}
    page.evaluate("(traits) => { for (const [name, value] of Object.entries(traits)) model.set(name, value) }", changed)
    page.evaluate("() => model.set('listing', new DataView(Float32Array.of(.1, 1, 0, .2, 2, 0, .3, 3, 0).buffer))")
    page.wait_for_function("() => document.querySelectorAll('.saelab-list-row').length === 3")
    assert page.locator(".saelab-list-row .saelab-token-name").all_text_contents() == [" new"] * 3
    assert title(page) == "Feature 1" and page.locator(".saelab-context").count() == 5
    assert page.locator('[data-number="feature"]').get_attribute("max") == "2"
    page.evaluate("() => { model.set('reading', {}); model.set('feature', 7); }")
    assert page.locator('[data-show="note"]').text_content() == "Feature 7 has not been read yet."


def test_the_same_reading_from_the_kernel_leaves_the_focus_where_it_is(mount: Mount, state: State) -> None:
    page = mount("feature_browser", state)
    context(page, 2).locator("[data-peak]").focus()
    page.evaluate("(value) => model.set('reading', value)", json.loads(json.dumps(state["reading"])))
    assert page.evaluate("() => document.activeElement.dataset.peak") == ""


def test_without_a_probe_there_is_no_weight_on_the_page(mount: Mount, state: State) -> None:
    columns = torch.rand(N, 3)
    columns[:, 2] = float("nan")
    unprobed = {
        **state,
        "listing": columns.numpy().tobytes(),
        "readings": [],
        "reading": {**state["reading"], "probe_weight": None},
        "orders": [order for order in state["orders"] if order["column"] != "probe_weight"],
        "order": "density",
    }
    page = mount("feature_browser", unprobed)
    assert not page.locator('[data-chart="probe_weight"]').is_visible()
    assert page.locator(".saelab-list-row").first.locator("> *").count() == 3
    assert page.locator('[data-select="order"] option').count() == 3


def test_a_buffer_that_was_dropped_is_asked_for(mount: Mount, state: State) -> None:
    page = mount("feature_browser", {**state, "listing": None})
    assert page.evaluate("() => model.sent") == [{"kind": "hello", "need": ["listing"], "id": 1}]
    assert rows(page) == [] and title(page) == f"Feature {state['feature']}"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violations(mount: Mount, state: State, theme: str) -> None:
    state["reading"] = odd_reading(state["feature"])
    page = mount("feature_browser", {**state, "stale": True, "error": "Something broke."}, theme=theme)
    page.wait_for_selector(".saelab-bars rect", state="attached")
    results = Axe().run(page, context=".saelab-feature-browser")
    assert results.violations_count == 0, results.generate_report()


def test_a_narrow_page_stacks_and_nothing_sticks_out(mount: Mount, state: State) -> None:
    state["reading"] = odd_reading(state["feature"])
    state["top_tokens"] = ["x" * 80] * N
    for width in (1120, 1000, 620, 340):
        page = mount("feature_browser", state, width=width)
        page.wait_for_selector(".saelab-bars rect", state="attached")
        box, feature = (
            page.locator(".saelab-browser-list").bounding_box(),
            page.locator(".saelab-feature").bounding_box(),
        )
        assert box is not None and feature is not None
        assert (feature["y"] >= box["y"] + box["height"]) == (width < 760)
        assert page.locator(".saelab-feature-browser").evaluate("(e) => e.scrollWidth <= e.clientWidth + 1")


def test_the_keyboard_reaches_every_control_and_shows_where_it_is(mount: Mount, state: State) -> None:
    page = mount("feature_browser", {**state, "stale": True, "feature": state["readings"][1]["feature"]})
    reached = []
    for _ in range(21):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
                const e = document.activeElement, style = getComputedStyle(e);
                const { action, number, select, search, toggle, list, peak, near } = e.dataset;
                const name = action ?? number ?? select ?? search ?? toggle ?? list
                    ?? (peak === '' ? 'token' : near ? 'near' : e.tagName);
                return { name, ring: style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2,
                         keeps: e.dataset.lmSuppressShortcuts };
            }"""
        )
        assert focused["ring"], f"no focus ring on {focused['name']}"
        assert focused["keeps"] == "true", f"JupyterLab would take the keys of {focused['name']}"
        reached.append(focused["name"])
    controls = ["feature", "previous", "next", "order", "search", "show_dead", "read_again", "features"]
    assert reached == [*controls, *["token"] * 8, *["near"] * 5]


@pytest.mark.parametrize("place", [".saelab-near", ".saelab-token[tabindex='0']"])
def test_the_focus_stays_at_its_place_when_another_feature_is_shown(
    mount: Mount, state: State, browser_widget: FeatureBrowser, place: str
) -> None:
    page = mount("feature_browser", state)
    where = f"() => [...document.querySelectorAll(`{place}`)].indexOf(document.activeElement)"
    page.locator(place).nth(2).focus()
    for feature in state["readings"][3]["feature"], state["readings"][4]["feature"]:
        page.evaluate("(feature) => model.set('feature', feature)", feature)
        answer(page, browser_widget)
        assert page.evaluate(where) == 2
    page.keyboard.press("Tab")
    assert page.evaluate(where) == 3  # Tab moves on, not back to the first


def test_closing_the_widget_leaves_nothing_behind(mount: Mount, state: State) -> None:
    page = mount("feature_browser", state)
    assert page.evaluate("() => model.listeners") > 0
    page.get_by_role("searchbox", name="Search").fill("x")
    page.evaluate("() => { model.set('order', 'index'); dispose(); }")
    assert page.evaluate("() => model.listeners") == 0
    assert page.locator("#cell *").count() == 0
    page.wait_for_timeout(300)
    assert trait(page, "search") == ""  # a removed widget does not send what was typed last

"""The front end of TrainingLab, in a real browser on a mock model: no Jupyter, no kernel."""

# Greek letters and typographic signs are what the page shows.
# ruff: noqa: RUF001

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page

COLUMNS = ["step", "l0", "gamma", "fvu", "probe_accuracy", "probe_train_accuracy", "n_active"]
HELLO = {"kind": "hello", "need": [], "id": 1}
Row = Sequence[float]
Mount = Callable[..., Page]


def history(rows: Sequence[Row]) -> bytes:
    """Rows as the kernel sends them: float32, row-major."""
    return b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)


def training_rows(n: int = 300, every: int = 10) -> list[Row]:
    """A plausible training run; the probe is measured only at every 12th row."""
    rows: list[Row] = []
    for i in range(n):
        step = i * every
        wiggle = math.sin(i * 1.7) + math.sin(i * 0.61)
        moved = 1 / (1 + math.exp(-(i - 190) / 8)) if i > 150 else 0.0
        l0 = 14 + 180 * math.exp(-i / 25) + 0.5 * wiggle - 6 * moved
        gamma = 0.90 - 0.5 * math.exp(-i / 15) - 0.05 * moved + 0.003 * wiggle
        fvu = 0.12 + 0.88 * math.exp(-i / 18) + 0.06 * moved + 0.004 * wiggle
        probe = 0.86 - 0.33 * math.exp(-i / 40) if i % 12 == 0 else math.nan
        train = 0.93 - 0.4 * math.exp(-i / 40) if i % 12 == 0 else math.nan
        rows.append((step, l0, gamma, fvu, probe, train, 400 + wiggle))
    return rows


def knob(name: str, label: str, symbol: str, **changes: Any) -> dict[str, Any]:
    defaults = {
        "unit": "",
        "help": "",
        "min": 0.0,
        "max": 1.0,
        "step": 0.05,
        "scale": "linear",
        "default": 0.0,
        "paper": None,
        "enabled_for": ["gated", "standard"],
    }
    return {"name": name, "label": label, "symbol": symbol, **defaults, **changes}


def chart(column: str, label: str, color: str, **changes: Any) -> dict[str, Any]:
    defaults = {
        "unit": "",
        "help": "",
        "domain": [None, None],
        "scale": "linear",
        "reference": None,
        "others": [],
        "digits": 3,
    }
    return {"column": column, "label": label, "color": color, **defaults, **changes}


def traits(**changes: Any) -> dict[str, Any]:
    rows = training_rows()
    state: dict[str, Any] = {
        "architecture": "gated",
        "preset": "paper",
        "ablations": [],
        "seed": 0,
        "options": {
            "architecture": [
                {"value": "gated", "label": "Gated", "ablations": ["no_r_mag"]},
                {"value": "standard", "label": "Standard", "ablations": []},
            ],
            "preset": [{"value": "paper", "label": "paper"}, {"value": "norm_weighted", "label": "norm-weighted"}],
            "ablations": [{"value": "no_r_mag", "label": "no r_mag"}],
            "shown_charts": [
                {"value": "l0", "label": "L0"},
                {"value": "gamma", "label": "Bias"},
                {"value": "fvu", "label": "FVU"},
                {"value": "probe_accuracy", "label": "Probe"},
            ],
        },
        "shown_charts": ["l0", "gamma", "fvu", "probe_accuracy"],
        "runs": [],
        "kernel": True,
        "l1_coefficient": 8.0,
        "aux_coefficient": 1.0,
        "gate_threshold": 0.0,
        "knobs": [
            knob(
                "l1_coefficient",
                "L1 penalty",
                "λ",
                help="How much each unit of activation costs. More: fewer features, more shrinkage.",
                min=0.1,
                max=100.0,
                step=0.05,
                scale="log",
                default=2.0,
                paper=5.0,
            ),
            knob(
                "aux_coefficient",
                "Auxiliary loss",
                "α",
                help="Keeps the gate honest: it has to reconstruct on its own.",
                max=4.0,
                step=0.1,
                default=1.0,
                paper=1.0,
                enabled_for=["gated"],
            ),
            knob(
                "gate_threshold",
                "Gate threshold",
                "θ",
                unit="σ",
                help="A feature fires where its gate exceeds this.",
                min=-1.0,
                max=1.0,
                paper=0.0,
                enabled_for=["gated"],
            ),
        ],
        "running": False,
        "step": int(rows[-1][0]),
        "steps_per_second": 412.0,
        "n_steps": 20_000,
        "status": "Training on 200,000 activations of the embedded model, layer 2.",
        "error": "",
        "columns": COLUMNS,
        "history": history(rows),
        "charts": [
            chart(
                "l0",
                "Active features (L0)",
                "l0",
                unit="per token",
                help="How many features fire on a token.",
                digits=1,
                domain=[0, None],
            ),
            chart(
                "gamma",
                "Shrinkage (γ)",
                "gamma",
                help="The reconstruction's scale against the best one.",
                reference={"value": 1.0, "label": "no shrinkage"},
            ),
            chart(
                "fvu",
                "Unexplained variance",
                "fvu",
                help="0: perfect. 1: no better than the mean.",
                domain=[None, 1],
                scale="log",
            ),
            chart(
                "probe_accuracy",
                "Sentiment probe",
                "probe",
                help="Held-out accuracy;",
                others=[{"column": "probe_train_accuracy", "label": "training", "color": "probe"}],
                reference={"value": 0.5, "label": "chance"},
                domain=[None, 1],
            ),
        ],
        "events": [{"step": 800, "label": "L1 penalty 1 → 2"}, {"step": 1800, "label": "L1 penalty 2 → 8"}],
    }
    return {**state, **changes}


def lab(page: Page) -> Locator:
    return page.locator(".saelab-training-lab")


def slider(page: Page, name: str) -> Locator:
    return page.locator(f'[data-knob="{name}"]')


def reset_button(page: Page, label: str) -> Locator:
    return page.get_by_role("button", name=f"Reset {label} to")


def trait(page: Page, name: str) -> Any:
    return page.evaluate("(name) => model.get(name)", name)


def wait_for_draws(page: Page, at_least: int = 1) -> None:
    page.wait_for_function(
        "(n) => Number(document.querySelector('.saelab-training-lab').dataset.draws) >= n", arg=at_least
    )


def paths(page: Page) -> list[str]:
    return [
        d or "" for d in page.locator("path.saelab-line").evaluate_all("(all) => all.map((p) => p.getAttribute('d'))")
    ]


def send_history(page: Page, rows: Sequence[Row]) -> None:
    """Publish rows as the kernel does, and wait until they are drawn."""
    draws = int(lab(page).get_attribute("data-draws") or 0)
    page.evaluate(
        "(values) => model.set('history', new DataView(Float32Array.from(values, (v) => v ?? NaN).buffer))",
        [None if math.isnan(value) else value for row in rows for value in row],
    )
    wait_for_draws(page, draws + 1)


def test_every_chart_shows_its_curve_and_its_latest_value(mount: Mount) -> None:
    page = mount("training_lab", traits())
    wait_for_draws(page)
    page.wait_for_selector("path.saelab-line[d^=M]")
    last = training_rows()[-1]
    for column in ("l0", "gamma", "fvu"):
        value = page.locator(f'[data-chart="{column}"]').get_attribute("data-value")
        assert float(value or "nan") == pytest.approx(last[COLUMNS.index(column)], rel=1e-6)
    assert page.locator('[data-chart="l0"] .saelab-chart-value').text_content() == f"{last[1]:.1f}"
    # Four curves, plus the training accuracy beside the held-out one.
    drawn = page.locator("path.saelab-line").evaluate_all("(all) => all.filter((p) => p.getAttribute('d')).length")
    assert drawn == 5
    assert page.locator("circle.saelab-dot").count() == 4
    label = page.get_by_role("img").first.get_attribute("aria-label")
    assert label == f"Active features (L0): {last[1]:.1f} per token."


def test_a_line_without_a_number_to_draw_is_not_drawn_and_has_no_key(mount: Mount) -> None:
    page = mount("training_lab", traits())
    wait_for_draws(page)
    key = page.locator('[data-chart="probe_accuracy"] .saelab-chart-key')
    line = page.locator('[data-chart="probe_accuracy"] .saelab-line-secondary')
    assert key.is_visible() and line.get_attribute("d")
    train = COLUMNS.index("probe_train_accuracy")
    send_history(page, [(*row[:train], math.nan, *row[train + 1 :]) for row in training_rows()])
    assert not key.is_visible() and not line.get_attribute("d")
    send_history(page, training_rows())
    assert key.is_visible() and line.get_attribute("d")


def test_a_new_palette_is_applied_at_once_and_takes_the_old_ones_place(mount: Mount) -> None:
    page = mount("training_lab", traits())
    wait_for_draws(page)
    stroke = "() => getComputedStyle(document.querySelector('[data-chart=l0] .saelab-line')).stroke"
    assert page.evaluate(stroke) == "rgb(0, 114, 178)"
    colors = {"l0": {"light": "#123456", "dark": "#abcdef"}, "gamma": {"light": "red; color: red", "dark": "#000000"}}
    page.evaluate("(palette) => model.set('palette', palette)", colors)
    assert page.evaluate(stroke) == "rgb(18, 52, 86)"
    own = [name for name in (lab(page).get_attribute("style") or "").split() if name.startswith("--saelab")]
    assert own == ["--saelab-l0:", "--saelab-l0-ink:"]


def test_the_counter_and_the_status_say_how_far_the_training_is(mount: Mount) -> None:
    page = mount("training_lab", traits())
    assert page.locator('[data-show="step"]').text_content() == "2,990"
    assert page.locator('[data-show="steps_per_second"]').text_content() == "412"
    assert page.get_by_role("status").filter(has_text="embedded model").count() == 1
    assert page.get_by_role("alert").text_content() == ""
    page.evaluate("() => { model.set('step', 12345); model.set('error', 'The loss is NaN.') }")
    page.wait_for_function("() => document.querySelector('[data-show=step]').textContent === '12,345'")
    assert page.get_by_role("alert").text_content() == "The loss is NaN."


def test_a_burst_of_updates_is_drawn_a_few_times_and_ends_with_the_last(mount: Mount) -> None:
    page = mount("training_lab", traits())
    wait_for_draws(page)
    before = int(lab(page).get_attribute("data-draws") or 0)
    page.evaluate(
        """() => { for (let i = 1; i <= 50; i++) {
            model.set('history', new DataView(Float32Array.of(10 * i, i, 0.5, 0.5, 0.5, 0.5, 1).buffer));
            model.set('step', 10 * i);
        } }"""
    )
    page.wait_for_selector('[data-chart="l0"][data-value="50"]')
    assert int(lab(page).get_attribute("data-draws") or 0) - before <= 2


def test_a_buffer_that_arrives_as_in_colab_is_read(mount: Mount) -> None:
    page = mount("training_lab", traits(history=None, step=0))
    page.evaluate("() => model.set('history', new Uint8Array(Float32Array.of(5, 7, 1, 1, 1, 1, 1).buffer))")
    page.wait_for_selector('[data-chart="l0"][data-value="7"]')


def test_a_buffer_that_was_dropped_is_asked_for_once(mount: Mount) -> None:
    page = mount("training_lab", traits(history=None))
    wait_for_draws(page)
    assert page.evaluate("() => model.sent") == [{**HELLO, "need": ["history"]}]
    send_history(page, training_rows(20))
    assert page.evaluate("() => model.sent.length") == 1


def test_before_the_first_step_nothing_is_drawn(mount: Mount) -> None:
    page = mount("training_lab", traits(history=b"", step=0))
    wait_for_draws(page)
    assert page.evaluate("() => model.sent") == [{**HELLO, "need": ["history"]}]
    assert page.locator('[data-chart="l0"] .saelab-chart-value').text_content() == "–"
    assert page.get_by_role("img").first.get_attribute("aria-label") == "Active features (L0): not measured yet."


def test_start_pause_and_reset_reach_the_kernel(mount: Mount) -> None:
    page = mount("training_lab", traits())
    toggle = page.locator('[data-action="toggle"]')
    assert toggle.text_content() == "Start"
    toggle.click()
    assert trait(page, "running") is True
    assert page.evaluate("() => model.saved.at(-1)") == {"running": True}
    page.get_by_role("button", name="Pause").click()
    assert trait(page, "running") is False
    page.get_by_role("button", name="Start").wait_for()
    page.locator('[data-action="reset"]').click()
    assert page.evaluate("() => model.sent") == [HELLO, {"kind": "reset", "id": 2}]


def test_step_keep_and_export_reach_the_kernel_and_step_is_off_while_training(mount: Mount) -> None:
    page = mount("training_lab", traits())
    for action in ("step", "keep", "export"):
        page.locator(f'[data-action="{action}"]').click()
    kinds = [message["kind"] for message in page.evaluate("() => model.sent")]
    assert kinds == ["hello", "take_step", "keep_run", "export"]
    page.evaluate("() => model.set('running', true)")
    page.get_by_role("button", name="Pause").wait_for()
    assert page.locator('[data-action="step"]').is_disabled()


def test_preset_ablations_and_seed_are_chosen_on_the_screen(mount: Mount) -> None:
    page = mount("training_lab", traits())
    page.get_by_label("no r_mag").check()
    assert trait(page, "ablations") == ["no_r_mag"]
    page.get_by_label("Seed").fill("12")
    page.get_by_label("Seed").press("Enter")
    assert trait(page, "seed") == 12
    page.get_by_label("Seed").fill("-3")
    page.get_by_label("Seed").press("Tab")
    assert trait(page, "seed") == 0 and page.get_by_label("Seed").input_value() == "0"
    page.get_by_label("Preset").select_option("norm_weighted")
    assert trait(page, "preset") == "norm_weighted"
    assert page.get_by_label("no r_mag").is_disabled() and page.get_by_label("no r_mag").is_checked()
    page.evaluate("() => { model.set('preset', 'paper'); model.set('ablations', []); model.set('seed', 5) }")
    assert page.get_by_label("no r_mag").is_enabled() and not page.get_by_label("no r_mag").is_checked()
    assert page.get_by_label("Preset").input_value() == "paper" and page.get_by_label("Seed").input_value() == "5"


def test_earlier_runs_are_shadows_with_names_and_can_be_taken_away(mount: Mount) -> None:
    runs = [{"id": 3, "label": "gated, L1 1", "history": history(training_rows(40)), "kept": True}]
    runs.append({"id": 8, "label": "standard, L1 4", "history": history(training_rows(50)), "kept": False})
    page = mount("training_lab", traits(runs=runs))
    page.wait_for_selector('[data-chart="fvu"] path.saelab-ghost[d^=M]')
    assert page.locator('[data-chart="l0"] path.saelab-ghost title').all_text_contents() == [
        "gated, L1 1",
        "standard, L1 4",
    ]
    assert page.locator(".saelab-runs li").all_inner_texts() == [
        "gated, L1 1\n×",
        "standard, L1 4 (the run before)\n×",
    ]
    page.get_by_role("button", name="Take away: standard, L1 4").click()
    assert page.evaluate("() => model.sent.at(-1)") == {"kind": "forget_run", "run_id": 8, "id": 2}
    page.evaluate("() => model.set('runs', [])")
    page.wait_for_function("() => document.querySelectorAll('path.saelab-ghost').length === 0")


def test_a_shadow_longer_than_the_run_is_seen_whole(mount: Mount) -> None:
    runs = [{"label": "long", "history": history(training_rows(300)), "kept": True}]
    page = mount("training_lab", traits(runs=runs, history=history(training_rows(5)), events=[]))
    page.wait_for_selector('[data-chart="l0"] path.saelab-ghost[d^=M]')
    ends = page.locator('[data-chart="l0"] path.saelab-ghost').evaluate("(e) => e.getBBox().x + e.getBBox().width")
    right = page.locator('[data-chart="l0"] svg').evaluate("(e) => e.clientWidth")
    assert ends <= right


def test_a_kernel_that_does_not_answer_is_told_of_until_it_does(mount: Mount, page: Page) -> None:
    page.clock.install()
    mount("training_lab", traits())
    said = page.locator("[data-show=kernel]")
    assert said.text_content() == ""
    page.clock.run_for(5000)
    assert "does not answer" in (said.text_content() or "")
    page.evaluate("() => model.answer()")
    assert said.text_content() == ""
    page.locator('[data-action="step"]').click()
    page.evaluate("() => model.answer()")
    page.clock.run_for(5000)
    assert said.text_content() == ""


def test_start_becomes_pause_without_changing_its_size(mount: Mount) -> None:
    page = mount("training_lab", traits())
    toggle = page.locator('[data-action="toggle"]')
    before = toggle.bounding_box()
    page.evaluate("() => model.set('running', true)")
    page.get_by_role("button", name="Pause").wait_for()
    assert toggle.bounding_box() == before


def test_dragging_a_slider_moves_its_trait(mount: Mount) -> None:
    page = mount("training_lab", traits())
    box = slider(page, "l1_coefficient").bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, y, steps=5)
    page.mouse.move(box["x"] + box["width"] + 40, y, steps=5)
    page.mouse.up()
    assert trait(page, "l1_coefficient") == 100
    saved = [save["l1_coefficient"] for save in page.evaluate("() => model.saved")]
    assert len(saved) > 3
    assert saved == sorted(saved)


def test_arrow_keys_move_a_slider_by_its_step(mount: Mount) -> None:
    page = mount("training_lab", traits())
    knob = slider(page, "aux_coefficient")
    assert knob.get_attribute("data-lm-suppress-shortcuts") == "true"
    knob.focus()
    page.keyboard.press("ArrowRight")
    assert trait(page, "aux_coefficient") == 1.1
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert trait(page, "aux_coefficient") == 0.9
    slider(page, "gate_threshold").focus()
    page.keyboard.press("ArrowDown")
    assert slider(page, "gate_threshold").get_attribute("aria-valuetext") == "−0.05 σ"


def test_a_log_slider_reaches_both_ends_and_has_the_geometric_mean_in_its_middle(mount: Mount) -> None:
    page = mount("training_lab", traits())
    knob = slider(page, "l1_coefficient")
    knob.focus()
    page.keyboard.press("Home")
    assert trait(page, "l1_coefficient") == 0.1
    page.keyboard.press("End")
    assert trait(page, "l1_coefficient") == 100
    box = knob.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert trait(page, "l1_coefficient") == pytest.approx(math.sqrt(0.1 * 100), rel=0.06)
    # One key press is one step: 0.05 decades.
    before = trait(page, "l1_coefficient")
    page.keyboard.press("ArrowRight")
    assert math.log10(trait(page, "l1_coefficient") / before) == pytest.approx(0.05, abs=0.003)


def test_a_knob_whose_range_is_no_whole_number_of_steps_still_reaches_its_ends(mount: Mount) -> None:
    knobs = [knob("l1_coefficient", "L1 penalty", "λ", min=0.3, max=47.0, step=0.07, scale="log", default=2.0)]
    page = mount("training_lab", traits(knobs=knobs))
    slider(page, "l1_coefficient").focus()
    page.keyboard.press("End")
    assert trait(page, "l1_coefficient") == 47
    page.keyboard.press("Home")
    assert trait(page, "l1_coefficient") == 0.3


def test_the_reset_button_of_a_knob_sets_its_default_exactly(mount: Mount) -> None:
    page = mount("training_lab", traits())
    reset_button(page, "L1 penalty").click()
    assert trait(page, "l1_coefficient") == 2
    assert slider(page, "l1_coefficient").get_attribute("aria-valuetext") == "2.00"


def test_a_change_made_in_python_moves_the_slider(mount: Mount) -> None:
    page = mount("training_lab", traits())
    page.evaluate("() => model.set('gate_threshold', 0.5)")
    knob = slider(page, "gate_threshold")
    assert knob.input_value() == "0.5"
    assert knob.get_attribute("aria-valuetext") == "0.50 σ"
    assert page.evaluate("() => model.saved") == []


def test_a_value_outside_the_range_is_shown_as_it_is(mount: Mount) -> None:
    page = mount("training_lab", traits())
    page.evaluate("() => { model.set('l1_coefficient', 1234.5); model.set('aux_coefficient', 0.123) }")
    readouts = page.locator(".saelab-slider output").all_text_contents()
    assert readouts[:2] == ["1234.5", "0.123"]
    page.evaluate("() => model.set('l1_coefficient', 0)")
    assert float(page.locator(".saelab-slider output").first.text_content() or "nan") == 0
    assert trait(page, "l1_coefficient") == 0


def test_a_change_made_in_python_does_not_pull_the_thumb_out_of_the_users_hand(mount: Mount) -> None:
    page = mount("training_lab", traits())
    knob = slider(page, "gate_threshold")
    box = knob.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, y, steps=3)
    held = knob.input_value()
    page.evaluate("() => model.set('gate_threshold', -0.9)")
    assert knob.input_value() == held
    page.mouse.up()
    assert knob.input_value() == "-0.9"


def test_choosing_an_architecture_sets_it_and_shows_its_knobs_alone(mount: Mount) -> None:
    page = mount("training_lab", traits())
    page.get_by_role("radio", name="Standard").check()
    assert trait(page, "architecture") == "standard"
    for name in ("aux_coefficient", "gate_threshold"):
        assert not slider(page, name).is_visible()
    assert not reset_button(page, "Auxiliary loss").is_visible()
    assert slider(page, "l1_coefficient").is_enabled() and slider(page, "l1_coefficient").is_visible()
    assert page.get_by_label("no r_mag").is_disabled()
    page.evaluate("() => model.set('architecture', 'gated')")
    assert slider(page, "aux_coefficient").is_enabled() and slider(page, "aux_coefficient").is_visible()
    assert page.get_by_label("no r_mag").is_enabled()
    page.wait_for_function("() => document.querySelector('[data-architecture=gated]').checked")


def test_the_charts_that_are_chosen_are_shown(mount: Mount) -> None:
    page = mount("training_lab", traits())
    wait_for_draws(page)
    assert page.locator('[data-chart="fvu"]').is_visible()
    page.get_by_role("checkbox", name="FVU").uncheck()
    assert trait(page, "shown_charts") == ["l0", "gamma", "probe_accuracy"]
    page.locator('[data-chart="fvu"]').wait_for(state="hidden")
    assert page.locator('[data-chart="gamma"]').is_visible()
    page.evaluate("() => model.set('shown_charts', ['fvu'])")
    page.locator('[data-chart="fvu"]').wait_for(state="visible")
    page.locator('[data-chart="gamma"]').wait_for(state="hidden")


def test_text_from_python_is_never_markup(mount: Mount) -> None:
    attack = "<img src=x onerror=\"document.title = 'broken'\">"
    state = traits(status=attack, error=attack, events=[{"step": 1000, "label": attack}])
    state["knobs"] = [{**state["knobs"][0], "label": attack, "help": attack, "unit": attack, "symbol": attack}]
    state["charts"] = [
        {
            **state["charts"][0],
            "label": attack,
            "help": attack,
            "unit": attack,
            "reference": {"value": 9, "label": attack},
        }
    ]
    state["options"] = {name: [{"value": "gated", "label": attack, "ablations": []}] for name in state["options"]}
    state["runs"] = [{"label": attack, "history": state["history"], "kept": True}]
    page = mount("training_lab", state)
    wait_for_draws(page)
    page.wait_for_selector("path.saelab-line[d^=M]")
    assert page.locator("img").count() == 0
    assert page.title() == "training_lab"
    assert page.get_by_role("alert").text_content() == attack


def test_gaps_in_the_measurements_do_not_break_a_curve(mount: Mount) -> None:
    rows = [(0, 5, math.nan, 0.5, 0.7, 0.8, 1), (1, math.nan, math.nan, 0.4, math.nan, math.nan, 1)]
    rows += [(2, 7, math.nan, math.nan, 0.9, 0.8, 1), (3, math.nan, math.nan, 0.0, math.nan, 0.9, 1)]
    page = mount("training_lab", traits(history=history(rows), step=3))
    wait_for_draws(page)
    page.wait_for_selector("path.saelab-line[d^=M]")
    assert not any("NaN" in d or "Infinity" in d for d in paths(page))
    # The line continues through the points that were measured.
    probe = page.locator('[data-chart="probe_accuracy"] path.saelab-line').last.get_attribute("d") or ""
    assert (probe.count("M"), probe.count("L")) == (1, 1)
    assert page.locator('[data-chart="gamma"]').get_attribute("data-value") == ""


@pytest.mark.parametrize("n", [1, 50])
@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_one_row_and_constant_data_are_drawn(mount: Mount, n: int, value: float) -> None:
    page = mount("training_lab", traits(history=history([(i, *[value] * 6) for i in range(n)])))
    wait_for_draws(page)
    page.wait_for_selector('[data-chart="l0"] circle.saelab-dot[cx]')
    attributes = page.locator("svg *").evaluate_all(
        "(all) => all.flatMap((e) => [...e.attributes].map((a) => a.value))"
    )
    assert not any("NaN" in text or "Infinity" in text for text in attributes)


def test_training_again_from_the_start_empties_and_refills_the_charts(mount: Mount) -> None:
    page = mount("training_lab", traits())
    wait_for_draws(page)
    send_history(page, [])
    assert page.locator('[data-chart="l0"]').get_attribute("data-value") == ""
    assert set(paths(page)) == {""}
    send_history(page, training_rows(5))
    assert page.locator('[data-chart="l0"]').get_attribute("data-value") != ""


def test_moments_when_a_knob_moved_are_marked_in_every_chart(mount: Mount) -> None:
    page = mount("training_lab", traits())
    page.wait_for_selector(".saelab-event", state="attached")
    for column in ("l0", "gamma", "fvu", "probe_accuracy"):
        titles = page.locator(f'[data-chart="{column}"] .saelab-events title').all_text_contents()
        assert titles == ["L1 penalty 1 → 2", "L1 penalty 2 → 8"]
    assert page.locator(".saelab-event-label").all_text_contents() == ["L1 penalty 2 → 8", "", "", ""]


def test_new_data_do_not_move_the_page(mount: Mount) -> None:
    page = mount("training_lab", traits(history=b"", step=0, steps_per_second=0.0, events=[]))
    wait_for_draws(page)
    boxes = """() => [...document.querySelectorAll('.saelab-training-lab, .saelab button, .saelab input, .saelab svg')]
        .map((e) => { const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })"""
    before = page.evaluate(boxes)
    page.evaluate("() => { model.set('step', 19999); model.set('steps_per_second', 1234); model.set('status', 'x') }")
    page.evaluate("() => model.set('events', [{ step: 500, label: 'L1 penalty 2 → 8' }])")
    send_history(page, training_rows())
    assert page.evaluate(boxes) == before


def test_a_narrow_page_stacks_and_nothing_sticks_out(mount: Mount) -> None:
    for width in (1000, 620, 340):
        page = mount("training_lab", traits(), width=width)
        wait_for_draws(page)
        page.wait_for_selector("path.saelab-line[d^=M]")
        knobs = page.locator(".saelab-knobs").bounding_box()
        charts = page.locator(".saelab-charts").bounding_box()
        assert knobs is not None and charts is not None
        assert (charts["y"] >= knobs["y"] + knobs["height"]) == (width < 640)
        assert lab(page).evaluate("(e) => e.scrollWidth <= e.clientWidth + 1")


# Contrast of the painted colours: a canvas resolves every colour syntax and blends translucent colours with the page.
CONTRAST = """([selector, property]) => {
    const context = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d');
    const luminance = (...colors) => {
        for (const color of colors) { context.fillStyle = color; context.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const page = getComputedStyle(document.body).backgroundColor;
    return [...document.querySelectorAll(selector)].map((element) => {
        const [a, b] = [luminance(page), luminance(page, getComputedStyle(element)[property])].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    });
}"""
# JupyterLab before 4.6 reports its theme but sets no color scheme.
OLDER_LAB_DARK = 'data-jp-theme-light="false" style="background: #111; --jp-ui-font-color1: #fff"'


@pytest.mark.parametrize(
    ("theme", "body"), [("light", None), ("dark", None), ("dark", OLDER_LAB_DARK)], ids=["light", "dark", "older-dark"]
)
def test_text_and_curves_stand_out_in_both_themes(mount: Mount, theme: str, body: str | None) -> None:
    page = mount("training_lab", traits(error="Something broke."), theme=theme, body=body)
    wait_for_draws(page)
    text = ".saelab-chart-value, .saelab-chart-label, .saelab-help, .saelab-unit, label, output, .saelab-status *"
    contrasts = page.evaluate(CONTRAST, [text, "color"])
    assert len(contrasts) > 20
    assert min(contrasts) >= 4.5
    assert min(page.evaluate(CONTRAST, ["svg text", "fill"])) >= 4.5
    assert min(page.evaluate(CONTRAST, ["path.saelab-line, .saelab-reference", "stroke"])) >= 3
    assert min(page.evaluate(CONTRAST, [".saelab-button", "borderColor"])) >= 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_button_is_as_legible_under_the_pointer(mount: Mount, theme: str) -> None:
    page = mount("training_lab", traits(), theme=theme)
    for action in ("toggle", "reset"):
        button = page.locator(f"[data-action={action}]")
        at_rest = button.evaluate("(e) => getComputedStyle(e).backgroundColor")
        button.hover()
        assert button.evaluate("(e) => getComputedStyle(e).backgroundColor") != at_rest
        results = Axe().run(page, context=f"[data-action={action}]", options={"runOnly": ["color-contrast"]})
        assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("architecture", ["gated", "standard"])
def test_axe_finds_no_violations(mount: Mount, theme: str, architecture: str) -> None:
    page = mount("training_lab", traits(architecture=architecture, error="Something broke."), theme=theme)
    wait_for_draws(page)
    page.wait_for_selector("path.saelab-line[d^=M]")
    results = Axe().run(page, context=".saelab-training-lab")
    assert results.violations_count == 0, results.generate_report()


def test_the_keyboard_reaches_every_control_and_shows_where_it_is(mount: Mount) -> None:
    page = mount("training_lab", traits())
    reached = []
    for _ in range(19):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
                const e = document.activeElement, style = getComputedStyle(e);
                const { action, knob, architecture, select, ablations, number, shownCharts } = e.dataset;
                const name = action ?? knob ?? architecture ?? select ?? ablations ?? number ?? shownCharts
                    ?? e.getAttribute('aria-label');
                return { name, ring: style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2,
                         keeps: e.dataset.lmSuppressShortcuts };
            }"""
        )
        assert focused["ring"], f"no focus ring on {focused['name']}"
        assert focused["keeps"] == "true", f"JupyterLab would take the keys of {focused['name']}"
        reached.append(focused["name"])
    assert reached == [
        "toggle",
        "step",
        "reset",
        "keep",
        "export",
        "gated",
        "preset",
        "no_r_mag",
        "seed",
        "l1_coefficient",
        "Reset L1 penalty to 2.00",
        "aux_coefficient",
        "Reset Auxiliary loss to 1.0",
        "gate_threshold",
        "Reset Gate threshold to 0.00 σ",
        "l0",
        "gamma",
        "fvu",
        "probe_accuracy",
    ]
    page.get_by_role("radio", name="Gated").focus()
    page.keyboard.press("ArrowDown")
    assert trait(page, "architecture") == "standard"
    page.locator('[data-action="toggle"]').focus()
    page.keyboard.press("Space")
    assert trait(page, "running") is True


def test_a_chart_is_described_anew_at_most_once_a_second(mount: Mount) -> None:
    page = mount("training_lab", traits(history=b"", step=0))
    wait_for_draws(page)
    page.evaluate(
        """() => { window.labels = 0;
            new MutationObserver((all) => { labels += all.length; })
                .observe(document.querySelector('svg'), { attributeFilter: ['aria-label'] }); }"""
    )
    for n in range(1, 11):
        send_history(page, training_rows(n))
    assert page.evaluate("() => labels") <= 1
    expected = f"{training_rows(10)[-1][1]:.1f}"
    page.wait_for_function("(text) => document.querySelector('svg').ariaLabel.includes(text)", arg=expected)


def test_two_widgets_on_one_page_do_not_share_ids_or_radios(mount: Mount) -> None:
    page = mount("training_lab", traits())
    page.evaluate(
        """async () => {
            const el = document.getElementById('cell').appendChild(document.createElement('div'));
            await (await import('/widget.js?again')).default.render({ model: window.model, el });
        }"""
    )
    ids = page.locator("[id]").evaluate_all("(all) => all.map((e) => e.id)")
    assert len(ids) == len(set(ids))
    assert page.get_by_role("radio", checked=True).count() == 2


def test_closing_the_widget_leaves_nothing_behind(mount: Mount) -> None:
    page = mount("training_lab", traits())
    wait_for_draws(page)
    assert page.evaluate("() => model.listeners") > 0
    page.evaluate("() => { model.set('step', 1); model.set('history', null); dispose(); }")
    assert page.evaluate("() => model.listeners") == 0
    assert page.locator("#cell *").count() == 0
    page.evaluate("() => { model.set('history', null); document.dispatchEvent(new PointerEvent('pointerup')); }")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

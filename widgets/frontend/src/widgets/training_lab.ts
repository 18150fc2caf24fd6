import type { AnyModel } from "@anywidget/types";
import { type Bytes, decodeFloat32, Table } from "../buffers";
import { stepDomain } from "../chart_scale";
import { createButton, createNumber, createRadios, createSelect, createToggles } from "../controls";
import { h, KEEP_KEYS, replaceChildren, setText } from "../dom";
import { formatCount, formatRate } from "../format";
import { atMostEvery, oncePerFrame } from "../frame";
import type { Kernel } from "../kernel";
import { createKnobs } from "../knobs";
import { type ChartEvent, createLineChart } from "../line_chart";
import type { ArchitectureSpec, ChartSpec, KnobSpec, LabKnobSpec, OptionSpec } from "../specs";
import { assign, onChange } from "../traits";
import { type InstrumentTraits, widget } from "../widget";
import "./training_lab.css";

interface Run {
  id: number;
  label: string;
  history: Bytes;
  kept: boolean;
}

interface Traits extends InstrumentTraits {
  architecture: string;
  preset: string;
  ablations: readonly string[];
  seed: number;
  shown_charts: readonly string[];
  options: {
    architecture: readonly ArchitectureSpec[];
    preset: readonly OptionSpec[];
    ablations: readonly OptionSpec[];
    shown_charts: readonly OptionSpec[];
  };
  /** Each is a trait of its own, too: which ones there are is up to Python. */
  knobs: readonly LabKnobSpec[];
  running: boolean;
  step: number;
  steps_per_second: number;
  n_steps: number;
  history: Bytes;
  columns: readonly string[];
  charts: readonly ChartSpec[];
  events: readonly ChartEvent[];
  runs: readonly Run[];
}

type LabModel = AnyModel<Traits>;

/** Start or pause, step, reset, keep and export, and how far the training is. */
function createToolbar(model: LabModel, kernel: Kernel, life: AbortSignal): HTMLElement {
  const toggle = createButton("toggle", "Start", () => assign(model, "running", !model.get("running")), true);
  const step = createButton("step", "Step", () => kernel.ask({ kind: "take_step" }));
  const reset = createButton("reset", "Reset", () => kernel.ask({ kind: "reset" }));
  const keep = createButton("keep", "Keep run", () => kernel.ask({ kind: "keep_run" }));
  const save = createButton("export", "Export", () => kernel.ask({ kind: "export" }));
  toggle.title = "Train, or pause: everything stays as it is";
  step.title = "One step of training";
  reset.title = "Start anew, with the knobs as they stand; this run stays as a shadow";
  keep.title = "Keep these curves as a shadow behind the next ones";
  save.title = "Write the SAE, the curves and the settings to a folder";

  const count = h("span", { class: "saelab-count", "data-show": "step" });
  const total = h("span", {});
  const speed = h("span", { class: "saelab-count saelab-count-speed", "data-show": "steps_per_second" });
  const progress = h("div", { class: "saelab-progress" }, h("span", {}, count, total, " steps"), h("span", {}, speed, " steps/s"));

  const show = (): void => {
    setText(toggle, model.get("running") ? "Pause" : "Start");
    for (const button of [toggle, reset, keep, save]) button.disabled = !model.get("kernel");
    step.disabled = model.get("running") || !model.get("kernel");
    const [nSteps, taken] = [model.get("n_steps"), model.get("step")];
    setText(count, formatCount(taken));
    setText(total, taken <= nSteps ? ` / ${formatCount(nSteps)}` : ""); // a run that has ended may be taken further
    setText(speed, formatRate(model.get("steps_per_second")));
  };
  onChange(model, ["running", "step", "n_steps", "steps_per_second"], life, oncePerFrame(show, life));
  show();
  return h("div", { class: "saelab-toolbar" }, toggle, step, reset, keep, save, progress);
}

/** What starts anew when it changes: architecture, preset, ablations, seed. */
function createSetup(model: LabModel, life: AbortSignal): HTMLElement {
  const options = model.get("options");
  const architecture = createRadios(model, "architecture", "Architecture", options.architecture, life);
  const preset = createSelect(model, "preset", "Preset", options.preset, life);
  const ablations = createToggles(model, "ablations", "Ablations", options.ablations, life);
  const seed = createNumber(model, "seed", "Seed", { min: 0, max: 999_999 }, life);
  const setup = h("fieldset", { class: "saelab-setup" }, architecture, preset.element, ablations, seed);
  const show = (): void => {
    setup.disabled = !model.get("kernel");
    const chosen = options.architecture.find(({ value }) => value === model.get("architecture"));
    ablations.disabled = !chosen?.ablations.length || model.get("preset") !== "paper";
    const having = options.architecture.filter((one) => one.ablations.length).map(({ label }) => label.toLowerCase());
    ablations.title = ablations.disabled ? `Only the ${having.join(" or ")} architecture in the paper's preset has ablations` : "";
  };
  onChange(model, ["architecture", "preset"], life, show);
  show();
  return setup;
}

/** Why a knob is off as things stand, or null when it isn't. */
const reasonFor = (model: LabModel): string | null => (model.get("kernel") ? null : "Off: this page has no kernel.");

/** Whether the chosen architecture has this knob. */
const hasKnob = (knob: KnobSpec, model: LabModel): boolean =>
  (knob as LabKnobSpec).enabled_for.includes(model.get("architecture"));

/** The curves of a run, decoded once. */
function runTables(columns: readonly string[]): (run: Run) => Table {
  const known = new WeakMap<Run, Table>();
  return (run) => {
    const table = known.get(run) ?? new Table(decodeFloat32(run.history), columns);
    known.set(run, table);
    return table;
  };
}

function createCharts(model: LabModel, drawn: () => void, life: AbortSignal): HTMLElement {
  const charts = model.get("charts").map((spec, index) => ({
    spec,
    chart: createLineChart(spec, life, { labelsEvents: index === 0 }),
  }));
  const describe = atMostEvery(1000, () => charts.forEach(({ chart }) => chart.describe()), life);
  const tableOf = runTables(model.get("columns"));
  const draw = (): void => {
    const table = new Table(decodeFloat32(model.get("history")), model.get("columns"));
    const x = table.column("step");
    const runs = model.get("runs").map((run) => ({ label: run.label, table: tableOf(run) }));
    const longest = Math.max(x.at(-1) ?? NaN, ...runs.map((run) => run.table.column("step").at(-1) ?? 0));
    const xDomain = stepDomain(x[0] ?? NaN, longest, model.get("n_steps"));
    for (const { spec, chart } of charts) {
      chart.element.hidden = !model.get("shown_charts").includes(spec.column);
      if (chart.element.hidden) continue;
      const others = spec.others.map(({ column }) => table.column(column));
      const ghosts = runs.map((run) => ({ label: run.label, x: run.table.column("step"), y: run.table.column(spec.column) }));
      chart.draw({ x, xDomain, y: table.column(spec.column), others, ghosts, events: model.get("events") });
    }
    describe();
    drawn();
  };
  const redraw = oncePerFrame(draw, life);
  onChange(model, ["history", "columns", "events", "n_steps", "runs", "shown_charts"], life, redraw);
  redraw();
  return h("div", { class: "saelab-charts saelab-training-charts" }, ...charts.map(({ chart }) => chart.element));
}

/** The runs that are drawn as shadows, each with a button that takes it away. */
function createRuns(model: LabModel, kernel: Kernel, life: AbortSignal): HTMLElement {
  const list = h("ul", { class: "saelab-runs" });
  const show = (): void => {
    const items = model.get("runs").map(({ id, label, kept }) => {
      const text = kept ? label : `${label} (the run before)`;
      const button = h(
        "button",
        { type: "button", class: "saelab-forget", "aria-label": `Take away: ${text}`, title: "Take away", ...KEEP_KEYS },
        "×",
      );
      button.disabled = !model.get("kernel");
      button.addEventListener("click", () => kernel.ask({ kind: "forget_run", run_id: id }));
      return h("li", {}, text, button);
    });
    replaceChildren(list, items);
    list.hidden = items.length === 0;
  };
  onChange(model, ["runs"], life, show);
  show();
  return h("div", { class: "saelab-runs-line", role: "group", "aria-label": "Earlier runs, drawn as shadows" }, list);
}

export default widget<Traits>("training-lab", ["history"], ({ model, kernel, life, drawn }) => [
  createToolbar(model, kernel, life),
  createSetup(model, life),
  h(
    "div",
    { class: "saelab-panel" },
    createKnobs(model, model.get("knobs"), life, () => reasonFor(model), ["architecture"], (knob) => !hasKnob(knob, model)),
    createCharts(model, drawn, life),
  ),
  createRuns(model, kernel, life),
  createToggles(model, "shown_charts", "Charts", model.get("options").shown_charts, life),
]);

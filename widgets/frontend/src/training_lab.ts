import { type Model, onChange, type RenderContext } from "./anywidget";
import { decodeFloat32, Table } from "./buffers";
import { stepDomain } from "./chart_scale";
import { h, KEEP_KEYS, setText, uniqueId } from "./dom";
import { formatCount, formatRate } from "./format";
import { atMostEvery, oncePerFrame } from "./frame";
import type { Knob } from "./knob_scale";
import { type ChartEvent, type ChartSpec, createLineChart } from "./line_chart";
import { createSlider } from "./slider";
import "./theme.css";
import "./training_lab.css";

interface Architecture {
  value: string;
  label: string;
}

interface Traits {
  architecture: string;
  architectures: readonly Architecture[];
  l1_coefficient: number;
  aux_coefficient: number;
  gate_threshold: number;
  knobs: readonly (Knob & { name: KnobName })[];
  running: boolean;
  step: number;
  steps_per_second: number;
  n_steps: number;
  status: string;
  error: string;
  history: unknown;
  columns: readonly string[];
  charts: readonly ChartSpec[];
  events: readonly ChartEvent[];
}

type KnobName = "l1_coefficient" | "aux_coefficient" | "gate_threshold";
type LabModel = Model<Traits>;

function assign<K extends keyof Traits & string>(model: LabModel, name: K, value: Traits[K]): void {
  model.set(name, value);
  model.save_changes();
}

/** Start or pause, reset, the architecture, and how far the training is. */
function createToolbar(model: LabModel, life: AbortSignal): HTMLElement {
  const toggle = h("button", { type: "button", class: "saelab-button saelab-primary", "data-action": "toggle", ...KEEP_KEYS });
  toggle.addEventListener("click", () => assign(model, "running", !model.get("running")));
  const reset = h("button", { type: "button", class: "saelab-button", "data-action": "reset", ...KEEP_KEYS }, "Reset");
  reset.addEventListener("click", () => model.send({ kind: "reset" }));

  const group = uniqueId("architecture");
  const radios = model.get("architectures").map(({ value, label }) => {
    const radio = h("input", { type: "radio", name: group, value, "data-architecture": value, ...KEEP_KEYS });
    radio.addEventListener("change", () => assign(model, "architecture", value));
    return { radio, label: h("label", {}, radio, label) };
  });
  const choice = h("fieldset", { class: "saelab-choice" }, h("legend", {}, "Architecture"), ...radios.map(({ label }) => label));

  const step = h("span", { class: "saelab-count", "data-show": "step" });
  const total = h("span", {});
  const speed = h("span", { class: "saelab-count saelab-count-speed", "data-show": "steps_per_second" });
  const progress = h("div", { class: "saelab-progress" }, h("span", {}, step, total, " steps"), h("span", {}, speed, " steps/s"));

  const show = (): void => {
    setText(toggle, model.get("running") ? "Pause" : "Start");
    for (const { radio } of radios) radio.checked = radio.value === model.get("architecture");
    const nSteps = model.get("n_steps");
    setText(step, formatCount(model.get("step")));
    setText(total, nSteps > 0 ? ` / ${formatCount(nSteps)}` : "");
    setText(speed, formatRate(model.get("steps_per_second")));
  };
  onChange(model, ["running", "architecture", "step", "n_steps", "steps_per_second"], life, oncePerFrame(show, life));
  show();
  return h("div", { class: "saelab-toolbar" }, toggle, reset, choice, progress);
}

/** Why a knob is off with the architecture that is chosen, or null when it isn't. */
function reasonFor(knob: Knob, model: LabModel): string | null {
  if (knob.enabled_for.includes(model.get("architecture"))) return null;
  const labels = model.get("architectures").filter(({ value }) => knob.enabled_for.includes(value));
  return `Off: only the ${labels.map(({ label }) => label.toLowerCase()).join(" or the ")} architecture has this knob.`;
}

function createKnobs(model: LabModel, life: AbortSignal): HTMLElement {
  const sliders = model.get("knobs").map((knob) => {
    const slider = createSlider(knob, life, (value) => assign(model, knob.name, value));
    const show = (): void => slider.show(model.get(knob.name));
    const enable = (): void => slider.setDisabled(reasonFor(knob, model));
    onChange(model, [knob.name], life, show);
    onChange(model, ["architecture"], life, enable);
    show();
    enable();
    return slider.element;
  });
  return h("div", { class: "saelab-knobs" }, ...sliders);
}

function createCharts(model: LabModel, root: HTMLElement, life: AbortSignal): HTMLElement {
  const charts = model.get("charts").map((spec, index) => ({ spec, chart: createLineChart(spec, index === 0, life) }));
  const describe = atMostEvery(1000, () => charts.forEach(({ chart }) => chart.describe()), life);
  let draws = 0;
  const draw = (): void => {
    const table = new Table(decodeFloat32(model.get("history")), model.get("columns"));
    const x = table.column("step");
    const xDomain = stepDomain(x[0] ?? NaN, x.at(-1) ?? NaN, model.get("n_steps"));
    for (const { spec, chart } of charts) {
      const secondary = spec.secondary ? table.column(spec.secondary) : new Float32Array(0);
      chart.draw({ x, xDomain, y: table.column(spec.column), secondary, events: model.get("events") });
    }
    describe();
    root.dataset.draws = String(++draws);
  };
  const redraw = oncePerFrame(draw, life);
  onChange(model, ["history", "columns", "events", "n_steps"], life, redraw);
  redraw();
  return h("div", { class: "saelab-charts" }, ...charts.map(({ chart }) => chart.element));
}

function createStatus(model: LabModel, life: AbortSignal): HTMLElement {
  const status = h("span", { role: "status" });
  const error = h("span", { role: "alert" });
  const show = (): void => {
    setText(status, model.get("status"));
    setText(error, model.get("error"));
  };
  onChange(model, ["status", "error"], life, show);
  show();
  return h("p", { class: "saelab-status" }, error, status);
}

function render({ model, el }: RenderContext<Traits>): () => void {
  const life = new AbortController();
  const root = h("div", { class: "saelab saelab-training-lab", "data-draws": 0 });
  root.append(
    createToolbar(model, life.signal),
    h("div", { class: "saelab-panel" }, createKnobs(model, life.signal), createCharts(model, root, life.signal)),
    createStatus(model, life.signal),
  );
  el.append(root);

  // Colab drops the buffers of a widget's first state.
  const dropped = decodeFloat32(model.get("history")).length === 0;
  if (dropped && model.get("step") > 0) model.send({ kind: "need" });

  return () => {
    life.abort();
    root.remove();
  };
}

export default { render };

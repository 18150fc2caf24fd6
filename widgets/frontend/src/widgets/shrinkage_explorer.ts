import type { AnyModel } from "@anywidget/types";
import { type Bytes, decodeFloat32 } from "../buffers";
import type { Domain } from "../chart_scale";
import { createRadios } from "../controls";
import { h, setText } from "../dom";
import { formatFixed } from "../format";
import { atMostEvery, oncePerFrame } from "../frame";
import { createKnobs } from "../knobs";
import { createLineChart } from "../line_chart";
import { magnitudesOf, type Numbers, type Repair, type TwoNumbers } from "../shrinkage_math";
import { createSlider } from "../slider";
import type { ChartSpec, FormulaSpec, KnobSpec, OptionSpec } from "../specs";
import { assign, onChange } from "../traits";
import { type InstrumentTraits, widget } from "../widget";
import { type Cell, type Grid, readGrid, repairCell, type RepairKind, type Shape } from "./shrinkage_explorer.grid";
import { createScatter } from "./shrinkage_explorer.scatter";
import { createTables } from "./shrinkage_explorer.tables";
import "./shrinkage_explorer.css";

interface Traits extends InstrumentTraits {
  l1_coefficient: number;
  noise: number;
  rescale: number;
  shift: number;
  repair: RepairKind;
  options: { repair: readonly OptionSpec<RepairKind>[] };
  knobs: readonly KnobSpec[];
  formulas: readonly FormulaSpec[];
  bias_chart: ChartSpec;
  shape: Shape;
  inputs: Bytes;
  true_codes: Bytes;
  codes: Bytes;
  dictionaries: Bytes;
  fits: Bytes;
}

type ExplorerModel = AnyModel<Traits>;

const BUFFERS = ["inputs", "true_codes", "codes", "dictionaries"] as const;
const CONTROLS = ["l1_coefficient", "noise", "rescale", "shift", "repair"] as const;
const HEIGHT = 270;

/** What is done to one SAE; null where each feature's own repair is wanted and not known. */
function repairOf(model: ExplorerModel, grid: Grid, fits: Float32Array, cell: Cell): Repair | TwoNumbers | null {
  const repair = model.get("repair");
  if (repair === "each_feature") return grid.fit(fits, model.get("noise"), cell.l1);
  return repair === "best_two" ? cell.best : { rescale: model.get("rescale"), shift: model.get("shift") };
}

/** The two numbers on the sliders. Moving one goes on by hand from where both stand. */
function createRepairSliders(model: ExplorerModel, knobs: readonly KnobSpec[], life: AbortSignal) {
  let shown: TwoNumbers = { rescale: model.get("rescale"), shift: model.get("shift") };
  const sliders = knobs.map((knob) => {
    const slider = createSlider(knob, life, (value) => {
      const { rescale, shift } = { ...shown, [knob.name as keyof TwoNumbers]: value } as TwoNumbers;
      model.set("rescale", rescale);
      model.set("shift", shift);
      assign(model, "repair", "by_hand");
    });
    return { name: knob.name as keyof TwoNumbers, slider };
  });
  return {
    element: h("div", { class: "saelab-knobs" }, ...sliders.map(({ slider }) => slider.element)),
    /** Null: each feature has numbers of its own. */
    show(numbers: TwoNumbers | null): void {
      if (numbers) shown = numbers;
      for (const { name, slider } of sliders) {
        slider.setDisabled(numbers ? null : "Off: each feature has its own.");
        slider.show(shown[name]);
      }
    },
  };
}

/** In words what the repair is. */
function noteOf(model: ExplorerModel, grid: Grid, fits: Float32Array, repair: Repair | TwoNumbers | null): string {
  const kind = model.get("repair");
  if (kind === "by_hand") return "The same for every feature: code × rescale + shift, where it is on.";
  if (kind === "best_two") return "Of least squared error here. Move a slider to go on by hand from them.";
  if (repair) {
    const { rescale, shift } = repair as Repair;
    const range = (all: Float64Array): string => `${formatFixed(Math.min(...all), 2)} to ${formatFixed(Math.max(...all), 2)}`;
    return `A RescaleShiftSAE, trained here: rescale ${range(rescale)}, shift ${range(shift)}.`;
  }
  if (model.get("kernel")) return "Python is fitting it.";
  const { noises, l1_coefficients } = model.get("shape");
  const places = noises.flatMap((noise) => {
    const known = l1_coefficients.filter((l1) => grid.fit(fits, noise, l1));
    return known.length ? [`noise ${noise}: L1 ${known.join(", ")}`] : [];
  });
  return places.length ? `Not fitted here. This page has it at ${places.join("; ")}.` : "Not fitted here.";
}

export default widget<Traits>("shrinkage-explorer", [...BUFFERS, "fits"], ({ model, root, life, drawn }) => {
  const knobs = model.get("knobs");
  const isRepair = ({ name }: KnobSpec): boolean => name === "rescale" || name === "shift";
  const sliders = createRepairSliders(model, knobs.filter(isRepair), life);
  const radios = createRadios(model, "repair", "Repair", model.get("options").repair, life);
  radios.classList.add("saelab-repair");
  const each = radios.querySelector<HTMLInputElement>('[value="each_feature"]')!;
  const note = h("p", { class: "saelab-help saelab-repair-note", "data-show": "repair" });
  const scatter = createScatter(root, life, HEIGHT);
  const biases = createLineChart(model.get("bias_chart"), life, { xLabel: "L1 penalty", xScale: "log", height: HEIGHT });
  const tables = createTables(model.get("formulas"));

  let grid = readGrid(model.get("shape"), bufferTraits());
  let fits = decodeFloat32(model.get("fits"));

  function bufferTraits() {
    return { inputs: model.get("inputs"), true_codes: model.get("true_codes"), codes: model.get("codes"), dictionaries: model.get("dictionaries") };
  }

  const describe = atMostEvery(
    1000,
    () => {
      scatter.describe();
      biases.describe();
    },
    life,
  );

  function draw(): void {
    if (grid) drawCell(grid);
    describe();
    drawn();
  }

  function drawCell(from: Grid): void {
    const cells = from.level(model.get("noise"));
    const here = from.indexOf(model.get("l1_coefficient"));
    const cell = cells[here]!;
    const repairs = cells.map((one) => repairOf(model, from, fits, one));
    const outcomes = cells.map((one, i) => (repairs[i] ? repairCell(one, repairs[i]) : null));
    const values = outcomes[here]?.values ?? cell.point.codes.value;
    const reach = cell.point.truth.value.reduce((most, value) => Math.max(most, value), 0) * 1.02 || 1;
    const before = values === cell.point.codes.value ? null : magnitudesOf(cell.point, cell.point.codes.value).line;
    scatter.draw({ magnitudes: magnitudesOf(cell.point, values), before, reach, l1: cell.l1 });

    const x = Float32Array.from(cells, ({ l1 }) => l1);
    const column = (name: keyof Numbers): Float32Array => Float32Array.from(outcomes, (one) => one?.numbers[name] ?? NaN);
    const unrepaired = Float32Array.from(cells, (one) => one.before.corrected);
    const isRepaired = outcomes.some((one, i) => one?.numbers !== cells[i]!.before);
    const [first, last] = [x[0]!, x.at(-1)!];
    const xDomain: Domain = first < last ? [first, last] : [first / 2, first * 2];
    biases.draw({
      x,
      xDomain,
      y: column("corrected"),
      others: model.get("bias_chart").others.map((other) => column(other.column as keyof Numbers)),
      ghosts: isRepaired ? [{ label: "γ before repair", x, y: unrepaired }] : [],
      cursor: x[here]!,
    });
    tables.show(cell.before, outcomes[here]?.numbers ?? null);
    const repair = repairs[here] ?? null;
    sliders.show(model.get("repair") === "each_feature" ? null : (repair as TwoNumbers));
    each.disabled = !model.get("kernel") && fits.every(Number.isNaN);
    const off = each.disabled ? " “Each feature” is off: this page has no kernel, and no fits." : "";
    setText(note, noteOf(model, from, fits, repair) + off);
  }

  const redraw = oncePerFrame(draw, life);
  onChange(model, CONTROLS, life, redraw);
  onChange(model, [...BUFFERS, "shape"], life, () => {
    grid = readGrid(model.get("shape"), bufferTraits());
    redraw();
  });
  onChange(model, ["fits"], life, () => {
    fits = decodeFloat32(model.get("fits"));
    redraw();
  });

  redraw();
  return [
    h(
      "div",
      { class: "saelab-panel" },
      h(
        "div",
        { class: "saelab-shrinkage-controls" },
        createKnobs(model, knobs.filter((one) => !isRepair(one)), life),
        h("div", {}, radios, note),
        sliders.element,
      ),
      h(
        "div",
        { class: "saelab-shrinkage-pictures" },
        h("div", { class: "saelab-charts" }, scatter.element, biases.element),
        tables.element,
      ),
    ),
  ];
});

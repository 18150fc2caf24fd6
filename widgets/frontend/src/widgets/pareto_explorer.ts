import type { AnyModel } from "@anywidget/types";
import { type Bytes, decodeFloat32, Table } from "../buffers";
import { createSelect, createToggles } from "../controls";
import { h, setText } from "../dom";
import { formatFixed } from "../format";
import { oncePerFrame } from "../frame";
import type { QuantitySpec, SeriesSpec } from "../specs";
import { assign, onChange } from "../traits";
import { type InstrumentTraits, widget } from "../widget";
import { createKey, createScatter, unitOf } from "./pareto_explorer.scatter";
import "./pareto_explorer.css";

interface Sae {
  /** An item of the trait `series`, by value. */
  series: string;
  /** Equal for those on one line. */
  line: number;
  /** Equal for the seeds of one setting, whose mean the line takes. */
  point: number;
  /** Empty where all have one seed. */
  seed: string;
  /** Names and texts of what is no number. */
  texts: readonly (readonly [string, string])[];
  path: string;
  /** Why there is no SAE to load; empty where there is one. */
  note: string;
}

interface Traits extends InstrumentTraits {
  x: string;
  y: string;
  architectures: readonly string[];
  controls: readonly string[];
  chosen: number;
  numbers: Bytes;
  quantities: readonly QuantitySpec[];
  saes: readonly Sae[];
  series: readonly SeriesSpec[];
}

type ParetoModel = AnyModel<Traits>;

/** The sweep as the page knows it. */
interface Sweep {
  quantity(column: string): QuantitySpec;
  column(name: string): Float32Array;
  seriesOf(row: number): SeriesSpec;
  /** A number as its quantity writes it. */
  written(column: string, row: number): string;
  /** Of several, with the word before it; empty where all have one. */
  seed(row: number): string;
  /** Architecture, control, seed, L1 penalty and what is on the axes. */
  label(row: number): string;
}

function createSweep(model: ParetoModel): Sweep {
  const quantities = new Map(model.get("quantities").map((one) => [one.column, one]));
  const series = new Map(model.get("series").map((one) => [one.value, one]));
  const columns = new Map<string, Float32Array>();
  let decoded: unknown;
  const column = (name: string): Float32Array => {
    if (decoded !== model.get("numbers")) columns.clear();
    decoded = model.get("numbers");
    const known = columns.get(name) ?? new Table(decodeFloat32(decoded), [...quantities.keys()]).column(name);
    columns.set(name, known);
    return known;
  };
  const written = (name: string, row: number): string => formatFixed(column(name)[row] ?? NaN, quantities.get(name)!.digits);
  const seriesOf = (row: number): SeriesSpec => series.get(model.get("saes")[row]!.series)!;
  const seed = (row: number): string => (model.get("saes")[row]?.seed ? `seed ${model.get("saes")[row]!.seed}` : "");
  return {
    column,
    written,
    seriesOf,
    seed,
    quantity: (name) => quantities.get(name)!,
    label(row) {
      const names = new Set(["l1_coefficient", model.get("x"), model.get("y")].filter((name) => quantities.has(name)));
      const numbers = [...names].map((name) => `${quantities.get(name)!.label} ${written(name, row)}`);
      return [seriesOf(row).label, seed(row), ...numbers].filter(Boolean).join(", ");
    },
  };
}

const IDLE = "Point at a mark to read it; click to choose it.";

/** What is known of the chosen SAE, under a line for the one that is pointed at. */
function createCard(model: ParetoModel, sweep: Sweep, life: AbortSignal) {
  const pointed = h("p", { class: "saelab-help saelab-pointed", "data-show": "pointed", dir: "auto" }, IDLE);
  const title = h("p", { class: "saelab-card-title", "data-show": "architecture" });
  const numbers = model.get("quantities").map((quantity) => {
    const value = h("dd", { "data-quantity": quantity.column });
    const unit = h("span", { class: "saelab-unit" }, unitOf(quantity));
    const name = h("dt", { title: quantity.help, dir: "auto" }, quantity.label, unit);
    return { column: quantity.column, value, row: h("div", {}, name, value) };
  });
  const list = h("dl", { class: "saelab-numbers" }, ...numbers.map(({ row }) => row));
  const texts = h("dl", { class: "saelab-texts" });
  const note = h("p", { class: "saelab-note", "data-show": "note" });

  const show = (): void => {
    const row = model.get("chosen");
    const sae = model.get("saes")[row];
    const seed = sweep.seed(row) ? [h("span", { class: "saelab-unit" }, sweep.seed(row))] : [];
    if (sae) title.replaceChildren(createKey(sweep.seriesOf(row)), h("span", { dir: "auto" }, sweep.seriesOf(row).label), ...seed);
    else title.replaceChildren("No SAE is chosen.");
    for (const { column, value, row: line } of numbers) {
      setText(value, sweep.written(column, row));
      line.classList.toggle("saelab-on-axis", column === model.get("x") || column === model.get("y"));
    }
    const known = sae ? [...sae.texts, ...(sae.path ? [["file", sae.path] as const] : [])] : [];
    texts.replaceChildren(...known.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", { dir: "auto" }, text))));
    setText(note, sae?.note ?? "");
  };
  onChange(model, ["chosen", "saes", "numbers", "x", "y"], life, show);
  show();
  return {
    element: h("section", { class: "saelab-card", "aria-label": "Chosen SAE" }, pointed, title, note, list, texts),
    point(row: number): void {
      setText(pointed, row < 0 ? IDLE : sweep.label(row));
    },
  };
}

function createControls(model: ParetoModel, life: AbortSignal): HTMLElement {
  const options = model.get("quantities").map(({ column, label }) => ({ value: column, label }));
  const series = model.get("series");
  const controls = series.filter(({ dash }) => dash);
  const key = (value: string): Node => createKey(series.find((one) => one.value === value)!);
  return h(
    "div",
    { class: "saelab-toolbar saelab-pareto-controls" },
    createToggles(model, "architectures", "Show", series.filter(({ dash }) => !dash), life, key),
    ...(controls.length ? [createToggles(model, "controls", "Controls", controls, life, key)] : []),
    h(
      "div",
      { class: "saelab-axes" },
      createSelect(model, "x", "x axis", options, life).element,
      createSelect(model, "y", "y axis", options, life).element,
    ),
  );
}

export default widget<Traits>("pareto", ["numbers"], ({ model, life, drawn }) => {
  const sweep = createSweep(model);
  const card = createCard(model, sweep, life);
  const scatter = createScatter(life, (row) => assign(model, "chosen", row), card.point);
  const draw = (): void => {
    const saes = model.get("saes");
    const shown = new Set([...model.get("architectures"), ...model.get("controls")]);
    const axis = (column: string) => ({ quantity: sweep.quantity(column), values: sweep.column(column) });
    scatter.draw({
      x: axis(model.get("x")),
      y: axis(model.get("y")),
      series: saes.map((_, row) => sweep.seriesOf(row)),
      lines: saes.map(({ line }) => line),
      points: saes.map(({ point }) => point),
      included: (row) => shown.has(saes[row]!.series),
      labelOf: sweep.label,
    });
    drawn();
  };
  const redraw = oncePerFrame(draw, life);
  const choose = (): void => scatter.choose(model.get("chosen"));
  onChange(model, ["x", "y", "architectures", "controls", "numbers"], life, redraw);
  onChange(model, ["chosen"], life, choose);
  choose();
  redraw();
  const panel = h("div", { class: "saelab-panel saelab-pareto-panel" }, scatter.element, card.element);
  return [createControls(model, life), panel];
});

import type { AnyModel } from "@anywidget/types";
import { type Bytes, decodeBytes, decodeFloat32 } from "../buffers";
import { createRadios, createSelect } from "../controls";
import { h, setText } from "../dom";
import { formatCount, formatFixed } from "../format";
import { atMostEvery, oncePerFrame } from "../frame";
import { createKnobs } from "../knobs";
import { createLayerChart, createSwatch, type LayerSeries, type Mark } from "../layer_chart";
import {
  type Axes,
  bytesFor,
  decodeLive,
  type Live,
  type Numbers,
  numbersAt,
  type Place,
  probeIndex,
  rowsOf,
  samePlace,
  without,
} from "../probe_math";
import type { ChartSpec, KnobSpec, OptionSpec, SeriesSpec } from "../specs";
import { assign, onChange } from "../traits";
import { type InstrumentTraits, widget } from "../widget";
import { createTextList, type LabelledText } from "./probe_explorer.texts";
import "./probe_explorer.css";

interface Traits extends InstrumentTraits {
  layer: number;
  representation: string;
  l1_coefficient: number;
  gate_threshold: number;
  part: string;
  shown: string;
  options: {
    layer: readonly OptionSpec[];
    representation: readonly OptionSpec[];
    part: readonly OptionSpec[];
    shown: readonly OptionSpec[];
  };
  knobs: readonly KnobSpec[];
  charts: readonly ChartSpec[];
  columns: readonly string[];
  controls: readonly SeriesSpec[];
  seeds: readonly string[];
  texts: readonly LabelledText[];
  numbers: Bytes;
  wrong: Bytes;
  tested: Bytes;
  live: Bytes;
  live_wrong: Bytes;
}

type ExplorerModel = AnyModel<Traits>;

/** As in `saelab.figures.probe_by_layer`. */
const MARKS: Record<string, Mark> = {
  codes: { color: "probe", shape: "circle", dash: "" },
  activations: { color: "text", shape: "square", dash: "7 3" },
  pca: { color: "l0", shape: "triangle", dash: "" },
};
const SHIFTS: Record<string, number> = { codes: -0.15, activations: 0, pca: 0.15 };

interface Look {
  mark: Mark;
  shift: number;
  isControl: boolean;
}

/** By representation: of those that have a look of their own, and of controls. */
function looksOf(model: ExplorerModel): Map<string, Look> {
  const own = Object.entries(MARKS).map(([name, mark]): [string, Look] => [name, { mark, shift: SHIFTS[name]!, isControl: false }]);
  const controls = model.get("controls").map((one, index): [string, Look] => [one.value, { mark: one, shift: 0.28 + 0.07 * index, isControl: true }]);
  return new Map([...own, ...controls]);
}

const isSeveral = (model: ExplorerModel): boolean => model.get("seeds").length > 1;

/** What the page shows, read anew from the traits. */
interface View {
  place: Place;
  representation: number;
  /** Of the chosen layer, by representation; what was computed at the gate threshold where there is such. */
  here: readonly Numbers[];
  /** What is looked up, at gate threshold 0. */
  at(layer: number, representation: number): Numbers;
  /** What was computed, where it is shown. */
  live: Live | null;
  /** Whether a gate threshold has been chosen that isn't computed yet. */
  isPending: boolean;
  tested: number[];
  wrong: number[];
}

function read(model: ExplorerModel): View {
  const options = model.get("options");
  const indexOf = (some: readonly OptionSpec[], value: unknown): number => some.findIndex((one) => one.value === String(value));
  const l1s = model.get("knobs").find(({ name }) => name === "l1_coefficient")?.values ?? [];
  const axes: Axes = {
    l1s: l1s.length,
    parts: options.part.length,
    representations: options.representation.length,
    columns: model.get("columns"),
    rows: model.get("texts").length,
  };
  const place = {
    layer: indexOf(options.layer, model.get("layer")),
    l1: l1s.indexOf(model.get("l1_coefficient")),
    part: indexOf(options.part, model.get("part")),
  };
  const representation = indexOf(options.representation, model.get("representation"));
  const values = decodeFloat32(model.get("numbers"));
  const at = (layer: number, one: number): Numbers =>
    numbersAt(values, probeIndex({ ...place, layer }, one, axes), axes.columns);

  const threshold = Math.fround(model.get("gate_threshold"));
  const computed = threshold === 0 ? null : decodeLive(decodeFloat32(model.get("live")), axes.columns);
  const live = computed && samePlace(computed.place, place) ? computed : null;
  const here = options.representation.map((_, one) => live?.numbers[one - 1] ?? at(place.layer, one));

  const bytes = bytesFor(axes.rows);
  const tested = rowsOf(decodeBytes(model.get("tested")), place.part * bytes, axes.rows);
  const wrong =
    live?.numbers[representation - 1]
      ? rowsOf(decodeBytes(model.get("live_wrong")), (representation - 1) * bytes, axes.rows)
      : rowsOf(decodeBytes(model.get("wrong")), probeIndex(place, representation, axes) * bytes, axes.rows);
  return { place, representation, here, at, live, isPending: threshold !== live?.threshold && threshold !== 0, tested, wrong };
}

/** Layer, representation, and the texts that are held out. */
function createChoices(model: ExplorerModel, life: AbortSignal): HTMLElement {
  const options = model.get("options");
  const representation = createRadios(model, "representation", "Probe on", options.representation, life);
  const looks = looksOf(model);
  representation.querySelectorAll("label").forEach((label, index) => {
    const look = looks.get(options.representation[index]!.value);
    if (look) label.insertBefore(createSwatch(look.mark), label.lastChild);
  });
  return h(
    "div",
    { class: "saelab-toolbar saelab-probe-choices" },
    createRadios(model, "layer", "Layer", options.layer, life),
    representation,
    createSelect(model, "part", "Held out", options.part, life).element,
  );
}

/** The numbers of the chosen layer, for reading off. */
function createNumbers(model: ExplorerModel): { element: HTMLElement; show(view: View): void } {
  const options = model.get("options");
  const title = h("span", {});
  const of = `Means of ${model.get("seeds").length} seeds; 95 % intervals are of these means.`;
  const caption = h("caption", {}, title, ...(isSeveral(model) ? [h("span", { class: "saelab-help" }, of)] : []));
  const looks = looksOf(model);
  const rows = options.representation.map(({ value, label }) => {
    const name = h("span", {}, label);
    const cells = ["n_active", "train_accuracy", "test_accuracy"].map((column) => h("td", { "data-number": column }));
    const interval = h("td", { class: "saelab-probe-interval" });
    const head = h("th", { scope: "row" });
    const look = looks.get(value);
    head.append(...(look ? [createSwatch(look.mark)] : []), name);
    return { row: h("tr", { "data-row": value }, head, ...cells, interval), cells, interval };
  });
  const heads = ["probe on", "dims", "train", "test", "95 %"].map((text) => h("th", { scope: "col" }, text));
  heads[1]!.title = "Dimensions: columns that are not zero throughout; of a PCA, its components";
  const element = h(
    "table",
    { class: "saelab-probe-numbers" },
    caption,
    h("thead", {}, h("tr", {}, ...heads)),
    h("tbody", {}, ...rows.map(({ row }) => row)),
  );
  return {
    element,
    show({ place, representation, here, live, isPending }) {
      const at = live ? `, gate threshold ${formatFixed(live.threshold, 2)}` : "";
      setText(title, `Layer ${options.layer[place.layer]?.label ?? ""}${at}${isPending ? " (computing)" : ""}`);
      rows.forEach(({ row, cells, interval }, one) => {
        const numbers = here[one]!;
        row.classList.toggle("saelab-chosen", one === representation);
        setText(cells[0]!, formatCount(numbers("n_active")));
        setText(cells[1]!, formatFixed(numbers("train_accuracy"), 3));
        setText(cells[2]!, formatFixed(numbers("test_accuracy"), 3));
        const [low, high] = [numbers("test_low"), numbers("test_high")];
        setText(interval, Number.isNaN(low) ? "–" : `${formatFixed(low, 2)}–${formatFixed(high, 2)}`);
      });
    },
  };
}

function createCharts(model: ExplorerModel, life: AbortSignal): { element: HTMLElement; show(view: View): void } {
  const options = model.get("options");
  const layers = options.layer.map(({ label }) => label);
  const names = options.representation.map(({ value }) => value);
  const looks = looksOf(model);
  const [accuracySpec, countSpec] = model.get("charts") as [Traits["charts"][0], Traits["charts"][0]];
  const onChoose = (layer: number): void => assign(model, "layer", Number(options.layer[layer]!.value));
  const accuracy = createLayerChart(accuracySpec, layers, life, { height: 230, xLabel: "layer", onChoose });
  const counts = createLayerChart(countSpec, layers, life, { height: 112, xLabel: "layer", onChoose });
  const COUNTS: readonly [string, Mark, boolean][] = [
    ["n_active", { color: "l0", shape: "circle", dash: "" }, false],
    ["l0", { color: "l0", shape: "circle", dash: "4 3" }, true],
  ];
  for (const { label } of countSpec.others) counts.caption.append(" hollow: ", label, ".");
  // It keeps its place, so that the chart below does not move.
  const before = h("span", { class: "saelab-hidden" }, "Grey outlines: at gate threshold 0.");
  accuracy.caption.append(" ", before);

  let latest: View | null = null;
  const describe = atMostEvery(
    1000,
    () => {
      if (!latest) return;
      const { at, here, place } = latest;
      const sentences = layers.map((layer, index) => {
        const each = options.representation.map(({ label: name }, one) => {
          const numbers = index === place.layer ? here[one]! : at(index, one);
          return `${name} ${formatFixed(numbers("test_accuracy"), 3)}, training ${formatFixed(numbers("train_accuracy"), 3)}`;
        });
        return `Layer ${layer}: ${each.join("; ")}.`;
      });
      accuracy.describe(`${accuracySpec.label}. ${sentences.join(" ")}`);
      const codes = names.indexOf("codes");
      const on = layers.map((layer, index) => {
        const numbers = index === place.layer ? here[codes]! : at(index, codes);
        return `Layer ${layer}: ${formatCount(numbers("n_active"))}, L0 ${formatFixed(numbers("l0"), 1)}.`;
      });
      counts.describe(`${countSpec.label}. ${on.join(" ")}`);
    },
    life,
  );

  function show(view: View): void {
    latest = view;
    before.classList.toggle("saelab-hidden", view.live === null);
    const { at, here, place, representation, live } = view;
    const values = (one: number, column: string): number[] =>
      layers.map((_, layer) => (layer === place.layer ? here[one]! : at(layer, one))(column));
    const series = names.flatMap((name, one): LayerSeries[] => {
      const { mark, shift, isControl } = looks.get(name)!;
      const usual = { mark, shift, isThin: isControl, isChosen: one === representation };
      const before = live ? layers.map((_, layer) => at(layer, one)("test_accuracy")) : [];
      const test = { ...usual, values: values(one, "test_accuracy"), low: values(one, "test_low"), high: values(one, "test_high"), before, hollow: false };
      // Training accuracies of controls are in the table; as further lines they would crowd the chart.
      return isControl ? [test] : [{ ...usual, values: values(one, "train_accuracy"), hollow: true }, test];
    });
    // Controls lie below the others, and the chosen one above.
    const height = ({ isThin, isChosen }: LayerSeries): number => (isChosen ? 2 : isThin ? 0 : 1);
    series.sort((a, b) => height(a) - height(b));
    accuracy.draw({ series, chosen: place.layer, value: here[representation]?.("test_accuracy") ?? NaN });
    const codes = names.indexOf("codes");
    const counted = COUNTS.map(([column, mark, hollow]): LayerSeries => {
      const before = live ? layers.map((_, layer) => at(layer, codes)(column)) : [];
      return { mark, values: values(codes, column), before, shift: 0, hollow, isChosen: false };
    });
    counts.draw({ series: counted, chosen: place.layer, value: here[codes]?.("n_active") ?? NaN });
    describe();
  }
  return { element: h("div", { class: "saelab-probe-charts" }, accuracy.element, counts.element), show };
}

const BUFFERS = ["numbers", "wrong", "tested", "live", "live_wrong"] as const;

export default widget<Traits>("probe-explorer", BUFFERS, ({ model, root, life, drawn }) => {
  const numbers = createNumbers(model);
  const charts = createCharts(model, life);
  const texts = createTextList(model, life);
  const reason = (knob: KnobSpec): string | null => {
    if (knob.name === "l1_coefficient") return (knob.values?.length ?? 0) > 1 ? null : "Off: there is one.";
    return model.get("kernel") ? null : "Off: this page has no kernel, which would have to compute.";
  };
  const knobs = createKnobs(model, model.get("knobs"), life, reason);
  // What was computed at some gate threshold is of one place; elsewhere a page without a kernel has 0 alone.
  const lookUp = (): void => {
    if (!model.get("kernel") && model.get("gate_threshold") !== 0 && read(model).live === null) assign(model, "gate_threshold", 0);
  };
  onChange(model, ["layer", "l1_coefficient", "part"], life, lookUp);

  const draw = (): void => {
    const view = read(model);
    numbers.show(view);
    charts.show(view);
    // No seed goes into activations.
    const seed = isSeveral(model) && view.representation > 0 ? `seed ${model.get("seeds")[0]}` : "";
    texts.show(view.wrong, without(view.tested, view.wrong), seed);
    root.classList.toggle("saelab-probe-pending", view.isPending);
    drawn();
  };
  const redraw = oncePerFrame(draw, life);
  const shown: (keyof Traits & string)[] = ["layer", "representation", "l1_coefficient", "gate_threshold", "part"];
  onChange(model, [...shown, "shown", ...BUFFERS], life, redraw);
  redraw();
  return [
    createChoices(model, life),
    h(
      "div",
      { class: "saelab-panel saelab-probe-panel" },
      h("div", { class: "saelab-probe-side" }, knobs, numbers.element),
      charts.element,
    ),
    texts.element,
  ];
});

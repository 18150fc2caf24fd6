import type { AnyModel } from "@anywidget/types";
import { line } from "d3-shape";
import { type Bytes, decodeFloat32 } from "../buffers";
import { calmDomain, type Domain, extentOf } from "../chart_scale";
import { createButton, createNumber } from "../controls";
import { h, setText } from "../dom";
import { formatCount, formatFixed } from "../format";
import { atMostEvery, oncePerFrame } from "../frame";
import {
  type Bin,
  binsOf,
  byDensity,
  columnAt,
  featureNumbers,
  type Look,
  magnitudeAt,
  type Metrics,
  neighbour,
  type Rows,
  rowsOf,
  wholeSae,
} from "../gate_math";
import type { Kernel } from "../kernel";
import { createKnobs } from "../knobs";
import { createLineChart } from "../line_chart";
import { createPlot, type Frame, type Plot } from "../plot";
import type { ChartSpec, KnobSpec } from "../specs";
import { assign, onChange } from "../traits";
import { type InstrumentTraits, widget } from "../widget";
import "./gate_explorer.css";

interface Traits extends InstrumentTraits {
  gate_threshold: number;
  feature_threshold_offset: number;
  natural: number;
  feature: number;
  architecture: string;
  n_rows: number;
  thresholds: readonly number[];
  naturals: readonly number[];
  columns: readonly string[];
  curves: Bytes;
  densities: Bytes;
  rows: Bytes;
  rows_of: Look;
  shipped: Bytes;
  shipped_of: readonly Look[];
  knobs: readonly KnobSpec[];
  charts: readonly ChartSpec[];
}

type GateModel = AnyModel<Traits>;

/** Everything that is drawn, as the traits stand. */
interface Scene {
  feature: number;
  threshold: number;
  /** The chosen feature's own. */
  own: number;
  natural: number;
  /** The chosen feature, or null where only a kernel could tell of it. */
  look: { look: Look; rows: Rows; bins: Bin[] } | null;
  /** The whole SAE as it stands, with and without the own threshold; null until the kernel has told of this state. */
  exact: { with: Metrics; without: Metrics } | null;
}

/** Looks up the chosen feature: what the kernel sent last, or one of those that it sent in advance. */
function createLooks(model: GateModel): () => Scene["look"] {
  let known: { buffer: unknown; found: NonNullable<Scene["look"]> } | null = null;
  return () => {
    const feature = model.get("feature");
    const shipped = model.get("shipped_of");
    const place = shipped.findIndex((one) => one.feature === feature);
    const candidates = [
      { look: model.get("rows_of"), buffer: model.get("rows"), place: 0 },
      { look: shipped[place], buffer: model.get("shipped"), place },
    ];
    // What tells of this very state, before what tells of the feature alone.
    const isNow = (look: Look): boolean =>
      look.gate_threshold === model.get("gate_threshold") && look.natural === model.get("natural");
    const usable = candidates.filter(({ look, buffer }) => look?.feature === feature && decodeFloat32(buffer).length > 0);
    const best = usable.find(({ look }) => isNow(look!)) ?? usable[0];
    if (!best) return null;
    const { buffer, place: at } = best;
    const look = best.look!;
    if (known === null || known.buffer !== buffer || known.found.look !== look) {
      const rows = rowsOf(decodeFloat32(buffer), model.get("n_rows"), at);
      known = { buffer, found: { look, rows, bins: binsOf(rows, look.norm) } };
    }
    return known.found;
  };
}

function createScene(model: GateModel): () => Scene {
  const lookUp = createLooks(model);
  return () => {
    const [threshold, natural] = [model.get("gate_threshold"), model.get("natural")];
    const own = threshold + model.get("feature_threshold_offset");
    const look = lookUp();
    const isExact = look !== null && look.look.gate_threshold === threshold && look.look.natural === natural;
    return {
      feature: model.get("feature"),
      threshold,
      own,
      natural,
      look,
      exact: isExact
        ? { with: wholeSae(look.rows, look.look, own), without: wholeSae(look.rows, look.look, threshold) }
        : null,
    };
  };
}

/** Which feature: its number, or the next one by density. With no kernel the buttons stop at those that the page has. */
function createPicker(model: GateModel, life: AbortSignal): HTMLElement {
  const nFeatures = Math.max(1, decodeFloat32(model.get("densities")).length);
  let order: number[] = [];
  const inReach = (feature: number): boolean =>
    model.get("kernel") || model.get("shipped_of").some((one) => one.feature === feature);
  const next = (step: 1 | -1): number | null => neighbour(order, model.get("feature"), step, inReach);
  const go = (step: 1 | -1) => (): void => {
    const to = next(step);
    if (to !== null) assign(model, "feature", to);
  };
  const denser = createButton("denser", "‹ Denser", go(-1));
  const rarer = createButton("rarer", "Rarer ›", go(1));
  denser.title = "The feature that is on for the next larger share of tokens";
  rarer.title = "The feature that is on for the next smaller share of tokens";
  const number = createNumber(model, "feature", "Feature", { min: 0, max: nFeatures - 1 }, life);
  const rank = h("span", { class: "saelab-gate-rank", "data-show": "rank" });
  const show = (): void => {
    // Not `disabled` at the end of the row: a button that has the focus would lose it.
    for (const [button, step] of [[denser, -1], [rarer, 1]] as const) button.setAttribute("aria-disabled", String(next(step) === null));
    setText(rank, `no. ${formatCount(order.indexOf(model.get("feature")) + 1)} of ${formatCount(order.length)} by density`);
  };
  const sort = (): void => {
    order = byDensity(decodeFloat32(model.get("densities")));
    show();
  };
  onChange(model, ["densities"], life, sort);
  onChange(model, ["feature", "shipped_of"], life, show);
  sort();
  return h("div", { class: "saelab-toolbar", role: "group", "aria-label": "Choose a feature" }, number, denser, rarer, rank);
}

const FEATURE_PLOT = { unit: "", xLabel: "gate pre-activation", height: 150 };
/** Below one token, so that a bar of one is seen on the log axis. */
const FLOOR = 0.7;

function vertical(plot: Plot, name: string): (frame: Frame, at: number) => void {
  const mark = plot.marks.append("line").attr("class", name);
  return ({ toX, top, bottom }, at) => mark.attr("x1", toX(at)).attr("x2", toX(at)).attr("y1", top).attr("y2", bottom);
}

/** Tokens by gate pre-activation, those above the threshold in colour. */
function createHistogram(life: AbortSignal): { plot: Plot; draw: (scene: Scene, x: Domain) => void } {
  const plot = createPlot(
    {
      ...FEATURE_PLOT,
      name: "histogram",
      color: "accent",
      label: "Tokens",
      unit: "% on",
      help: "How many tokens have which gate pre-activation, on a log scale. Right of the line the feature is on.",
      digits: 2,
    },
    life,
  );
  const off = plot.marks.append("path").attr("class", "saelab-gate-bars saelab-gate-off");
  const on = plot.marks.append("path").attr("class", "saelab-gate-bars saelab-gate-on");
  const atGlobal = vertical(plot, "saelab-gate-global");
  const atOwn = vertical(plot, "saelab-gate-own");
  const label = plot.over.append("text").attr("class", "saelab-gate-label");
  return {
    plot,
    draw({ look, own, threshold }, x) {
      const bins = look?.bins ?? [];
      const most = bins.reduce((so_far, { count }) => Math.max(so_far, count), 10);
      plot.draw({ domain: x, scale: "linear" }, { domain: [FLOOR, most * 1.3], scale: "log" }, (frame) => {
        const { toX, toY, bottom, left, right, top } = frame;
        const bars = (clip: (bin: Bin) => [number, number]): string =>
          bins
            .map((bin): [number, number, number] => [...clip(bin), bin.count])
            .filter(([from, to, count]) => count > 0 && to > from)
            .map(([from, to, count]) => `M${toX(from)},${bottom}V${toY(count)}H${Math.max(toX(from) + 0.5, toX(to) - 1)}V${bottom}Z`)
            .join("");
        off.attr("d", bars(({ from, to }) => [from, Math.min(to, own)]));
        on.attr("d", bars(({ from, to }) => [Math.max(from, own), to]));
        atGlobal(frame, threshold);
        atOwn(frame, own);
        const at = toX(own);
        label
          .attr("x", Math.min(Math.max(at, left), right))
          .attr("y", top - 5)
          .attr("text-anchor", at > (left + right) / 2 ? "end" : "start");
        setText(label.node()!, `${own === threshold ? "θ" : "own θ"} ${formatFixed(own, 2)}`);
      });
    },
  };
}

/** Bins of fewer tokens say little of the best code. */
const ENOUGH_TOKENS = 3;

/** Magnitude and code over the gate pre-activation, and the code that would serve best. */
function createCodePlot(life: AbortSignal): { plot: Plot; draw: (scene: Scene, x: Domain) => void } {
  const plot = createPlot(
    {
      ...FEATURE_PLOT,
      name: "code",
      color: "accent",
      label: "Code",
      unit: "mean when on",
      help: "Line: the code, zero up to the threshold.",
      digits: 3,
    },
    life,
  );
  for (const [kind, text] of [["magnitude", "magnitude"], ["learned", "magnitude as learned"], ["best", "code that would reconstruct best, mean of a bar"]] as const) {
    plot.caption.append(" ", h("span", { class: "saelab-gate-key", "data-key": kind }, text));
  }
  const learned = plot.marks.append("path").attr("class", "saelab-ghost");
  const magnitude = plot.marks.append("path").attr("class", "saelab-gate-magnitude");
  const best = plot.marks.append("g").attr("class", "saelab-gate-best");
  const atOwn = vertical(plot, "saelab-gate-own");
  const code = plot.marks.append("path").attr("class", "saelab-line");
  let yDomain: Domain | null = null;
  return {
    plot,
    draw({ look, own, natural, exact }, x) {
      const of = look?.look;
      const dots = exact && look ? look.bins.filter(({ count }) => count >= ENOUGH_TOKENS) : [];
      const top = of ? magnitudeAt(x[1], 0, of) : 1;
      yDomain = calmDomain(yDomain, extentOf([[0, top], dots.map((bin) => bin.best)], "linear"), [null, null], "linear");
      plot.draw({ domain: x, scale: "linear" }, { domain: yDomain, scale: "linear" }, (frame) => {
        const { toX, toY } = frame;
        const path = (points: [number, number][]): string => line()(points.map(([a, b]) => [toX(a), toY(b)])) ?? "";
        const magnitudes = (from: number, share: number): [number, number][] => {
          if (!of) return [];
          // Where the line crosses zero, it has a corner.
          const corner = (-(1 - share) * of.shift) / of.slope;
          return [from, corner, x[1]].filter((at) => at >= from && at <= x[1]).map((at) => [at, magnitudeAt(at, share, of)]);
        };
        learned.attr("d", natural > 0 ? path(magnitudes(x[0], 0)) : "");
        magnitude.attr("d", path(magnitudes(x[0], natural)));
        const from = Math.min(Math.max(own, x[0]), x[1]);
        code.attr("d", of ? path([[x[0], 0], [from, 0], ...magnitudes(from, natural)]) : "");
        best
          .selectAll<SVGCircleElement, Bin>("circle")
          .data(dots)
          .join("circle")
          .attr("r", 2)
          .attr("cx", (bin) => toX((bin.from + bin.to) / 2))
          .attr("cy", (bin) => toY(bin.best));
        atOwn(frame, own);
      });
    },
  };
}

const signed = (value: number, digits: number): string => `${value > 0 ? "+" : ""}${formatFixed(value, digits)}`;

/** What the feature's own threshold does to all of the SAE, or why that isn't known. */
function effectText(scene: Scene, hasKernel: boolean): string {
  if (scene.look === null) return hasKernel ? "Waiting for the kernel." : "This page does not have that feature, and has no kernel to ask.";
  if (scene.own === scene.threshold) return "The feature has no threshold of its own: move the slider to try one.";
  if (scene.exact === null) {
    return hasKernel ? "Waiting for the kernel." : "With these settings, only a kernel could tell what the feature’s own threshold does.";
  }
  const change = (name: keyof Metrics, digits: number): string => signed(scene.exact!.with[name] - scene.exact!.without[name], digits);
  return `Its own threshold alone changes the whole SAE: L0 ${change("l0", 3)}, bias γ ${change("gamma", 6)}, FVU ${change("fvu", 6)}.`;
}

function createFeature(life: AbortSignal): { elements: HTMLElement[]; draw: (scene: Scene, hasKernel: boolean) => void; describe: () => void } {
  const histogram = createHistogram(life);
  const code = createCodePlot(life);
  const largest = h("span", { "data-show": "largest" });
  const effect = h("span", { "data-show": "effect", "aria-live": "off" });
  let shown = "";
  return {
    elements: [
      h("div", { class: "saelab-gate-plots" }, histogram.plot.element, code.plot.element),
      h("p", { class: "saelab-gate-effect" }, largest, " ", effect),
    ],
    draw(scene, hasKernel) {
      // While the kernel fetches a feature, the one before stays: a flash of nothing would tell less.
      setText(effect, effectText(scene, hasKernel));
      if (scene.look === null && hasKernel) return;
      const [lo, hi] = extentOf([scene.look?.rows.piGate ?? [-1, 1], [0, scene.own]], "linear")!;
      const xDomain: Domain = [lo - 0.03 * (hi - lo), hi + 0.03 * (hi - lo)];
      histogram.draw(scene, xDomain);
      code.draw(scene, xDomain);
      const numbers = scene.look && featureNumbers(scene.look.rows.piGate, scene.own, scene.natural, scene.look.look);
      histogram.plot.showValue(100 * (numbers?.density ?? NaN));
      code.plot.showValue(numbers?.mean ?? NaN);
      setText(largest, `Largest code ${formatFixed(numbers?.largest ?? NaN, 2)}.`);
      shown = numbers
        ? `Feature ${scene.feature}, threshold ${formatFixed(scene.own, 2)}: on for ${formatFixed(100 * numbers.density, 2)} % of the tokens, ` +
          `mean code when on ${formatFixed(numbers.mean, 3)}, largest ${formatFixed(numbers.largest, 3)}.`
        : `Feature ${scene.feature} is not in this page.`;
    },
    describe() {
      histogram.plot.describe(`Tokens by gate pre-activation. ${shown}`);
      code.plot.describe(`Code over gate pre-activation. ${shown}`);
    },
  };
}

/** The curves of the whole SAE over the gate threshold. */
function createWhole(model: GateModel, life: AbortSignal): { element: HTMLElement; draw: (scene: Scene) => void; describe: () => void } {
  const charts = model.get("charts").map((spec) => ({
    spec,
    chart: createLineChart(spec, life, { xLabel: "gate threshold θ", height: 130 }),
  }));
  return {
    element: h("div", { class: "saelab-charts saelab-gate-charts" }, ...charts.map(({ chart }) => chart.element)),
    draw({ threshold, natural, exact }) {
      const x = Float32Array.from(model.get("thresholds"));
      const columns = model.get("columns");
      const stack = {
        values: decodeFloat32(model.get("curves")),
        naturals: model.get("naturals"),
        nThresholds: x.length,
        nColumns: columns.length,
      };
      for (const { spec, chart } of charts) {
        const column = columns.indexOf(spec.column);
        const ghosts = natural > 0 ? [{ label: "b_mag as learned", x, y: columnAt(stack, 0, column) }] : [];
        const known = exact?.with[spec.column as keyof Metrics];
        const data = { x, xDomain: [x[0]!, x.at(-1)!] as Domain, y: columnAt(stack, natural, column), others: [], ghosts, cursor: threshold };
        chart.draw(known === undefined ? data : { ...data, value: known });
      }
    },
    describe() {
      charts.forEach(({ chart }) => chart.describe());
    },
  };
}

function createReason(model: GateModel): (knob: KnobSpec) => string | null {
  return ({ name }) =>
    name === "natural" && model.get("architecture") === "standard" ? "Off: the magnitudes of a standard SAE have no shift." : null;
}

const DRAWN = ["gate_threshold", "feature_threshold_offset", "natural", "feature", "curves", "rows", "rows_of", "shipped", "shipped_of", "n_rows"] as const;

function createPanels(model: GateModel, kernel: Kernel, drawn: () => void, life: AbortSignal): HTMLElement[] {
  const sceneNow = createScene(model);
  const feature = createFeature(life);
  const whole = createWhole(model, life);
  const describe = atMostEvery(1000, () => [feature, whole].forEach((part) => part.describe()), life);
  const draw = (): void => {
    const scene = sceneNow();
    feature.draw(scene, model.get("kernel"));
    whole.draw(scene);
    describe();
    drawn();
  };
  const redraw = oncePerFrame(draw, life);
  onChange(model, DRAWN, life, redraw);
  // Nothing else would tell that no kernel answers.
  onChange(model, ["feature"], life, () => sceneNow().look ?? kernel.ask({ kind: "hello", need: [] }));
  redraw();
  const knobs = createKnobs(model, model.get("knobs"), life, createReason(model), ["architecture"]);
  return [
    h("div", { class: "saelab-panel" }, knobs, h("div", { class: "saelab-gate-feature", role: "group", "aria-label": "One feature" }, ...feature.elements)),
    h("div", { class: "saelab-gate-whole", role: "group", "aria-label": "The whole SAE" }, h("p", { class: "saelab-gate-heading" }, "The whole SAE, by the gate threshold of all features"), whole.element),
  ];
}

export default widget<Traits>("gate-explorer", ["curves", "densities", "rows", "shipped"], ({ model, kernel, life, drawn }) => [
  createPicker(model, life),
  ...createPanels(model, kernel, drawn, life),
]);

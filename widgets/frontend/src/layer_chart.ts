import { line, symbol } from "d3-shape";
import { axisPosition, calmDomain, type Domain, extentOf } from "./chart_scale";
import { createPlot, type Frame } from "./plot";
import { shapeOf } from "./shapes";
import type { ChartSpec } from "./specs";
import "./layer_chart.css";

/** How a line is told from the others: in colour, and without. */
export interface Mark {
  /** Names a colour variable of the theme. */
  color: string;
  shape: string;
  /** As in SVG's `stroke-dasharray`; empty: solid. */
  dash: string;
}

/** One value a layer; NaN: a gap. */
export interface LayerSeries {
  mark: Mark;
  values: readonly number[];
  /** Of vertical bars, where there are any. */
  low?: readonly number[];
  high?: readonly number[];
  /** What was there before, in grey, where it differs. */
  before?: readonly number[];
  /** Beside the layer's tick, as a share of the distance between two, so that marks don't hide one another. */
  shift: number;
  hollow: boolean;
  isThin?: boolean;
  isChosen: boolean;
}

export interface LayerChart {
  readonly element: HTMLElement;
  readonly caption: HTMLElement;
  draw(data: { series: readonly LayerSeries[]; chosen: number; value: number }): void;
  describe(text: string): void;
}

/** A small picture of a mark, for a key. */
export function createSwatch({ color, shape, dash }: Mark): SVGSVGElement {
  const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  swatch.setAttribute("class", "saelab-swatch");
  swatch.setAttribute("viewBox", "0 0 26 12");
  swatch.setAttribute("aria-hidden", "true");
  swatch.style.setProperty("--line", `var(--saelab-${color})`);
  const make = (d: string, kind: string): SVGPathElement => {
    const path = document.createElementNS(swatch.namespaceURI, "path") as SVGPathElement;
    path.setAttribute("d", d);
    path.setAttribute("class", kind);
    return path;
  };
  const stroke = make("M0,6H26", "saelab-line");
  if (dash) stroke.setAttribute("stroke-dasharray", dash);
  const dot = make(symbol(shapeOf(shape), 42)() ?? "", "saelab-mark");
  dot.setAttribute("transform", "translate(13,6)");
  swatch.append(stroke, dot);
  return swatch;
}

const TRAIN_DASH = "1 3";

/** Lines over layers, which stand at equal distances; the chosen layer lies on a band. */
export function createLayerChart(
  spec: ChartSpec,
  layers: readonly string[],
  life: AbortSignal,
  options: { height: number; xLabel: string; onChoose(layer: number): void },
): LayerChart {
  const plot = createPlot({ ...spec, name: spec.column, height: options.height, xLabel: options.xLabel }, life);
  const band = plot.under.append("rect").attr("class", "saelab-band");
  const reference = plot.marks.append("line").attr("class", "saelab-reference");
  const lines = plot.marks.append("g");
  const bars = plot.marks.append("g");
  const marks = plot.marks.append("g");
  const referenceLabel = plot.over.append("text").attr("class", "saelab-reference-label").text(spec.reference?.label ?? "");
  // With a pointer a layer can also be chosen here; with keys there are the radio buttons.
  const hits = plot.over
    .selectAll<SVGRectElement, string>("rect")
    .data(layers)
    .join("rect")
    .attr("class", "saelab-layer-hit")
    .on("click", (_: Event, label: string) => options.onChoose(layers.indexOf(label)));
  hits.append("title").text((label) => `Layer ${label}`);
  const ticks = layers.map((label, at) => ({ at, label }));

  let yDomain: Domain | null = null;
  let latest: { series: readonly LayerSeries[]; chosen: number } | null = null;

  function paint({ toX, toY, left, right, top, bottom }: Frame): void {
    const { series, chosen } = latest!;
    const width = toX(1) - toX(0);
    const edge = (at: number): number => Math.min(right, Math.max(left, toX(at)));
    const fromTo = (at: number): [number, number] => [edge(at - 0.5), edge(at + 0.5) - edge(at - 0.5)];
    band.attr("x", fromTo(chosen)[0]).attr("width", fromTo(chosen)[1]).attr("y", top).attr("height", bottom - top);
    hits.each(function (_, at) {
      const [x, wide] = fromTo(at);
      for (const [name, value] of Object.entries({ x, width: wide, y: top, height: bottom - top })) {
        this.setAttribute(name, String(value));
      }
    });
    const isSeen = (value: number): boolean => Number.isFinite(axisPosition(value, spec.scale));
    const x = (one: LayerSeries, at: number): number => toX(at) + one.shift * width;
    const draw = line<number>(
      (_, at) => at,
      (value) => toY(value),
    ).defined(isSeen);
    lines
      .selectAll("path")
      .data(series)
      .join("path")
      .attr("class", "saelab-line")
      .classed("saelab-line-thin", ({ isThin = false }) => isThin)
      .classed("saelab-chosen", ({ isChosen }) => isChosen)
      .style("--line", ({ mark }) => `var(--saelab-${mark.color})`)
      .attr("stroke-dasharray", ({ mark, hollow }) => (hollow ? TRAIN_DASH : mark.dash || null))
      .attr("d", (one) => draw.x((_, at) => x(one, at))(one.values) ?? "");
    const points = series.flatMap((one) => one.values.map((value, at) => ({ one, value, at })));
    const ghosts = series.flatMap((one) =>
      (one.before ?? []).flatMap((value, at) => (isSeen(value) && value !== one.values[at] ? [{ one, value, at }] : [])),
    );
    const intervals = points.filter(({ one, at }) => isSeen(one.low?.[at] ?? NaN) && isSeen(one.high?.[at] ?? NaN));
    bars
      .selectAll("line")
      .data(intervals)
      .join("line")
      .attr("class", "saelab-interval")
      .classed("saelab-chosen", ({ one }) => one.isChosen)
      .style("--line", ({ one }) => `var(--saelab-${one.mark.color})`)
      .attr("x1", ({ one, at }) => x(one, at))
      .attr("x2", ({ one, at }) => x(one, at))
      .attr("y1", ({ one, at }) => toY(one.low![at]!))
      .attr("y2", ({ one, at }) => toY(one.high![at]!));
    const isHere = ({ one, at }: { one: LayerSeries; at: number }): boolean => one.isChosen && at === chosen && !one.hollow;
    marks
      .selectAll("path")
      .data([
        ...ghosts.map((ghost) => ({ ...ghost, kind: "ghost" })),
        ...points.filter(({ value }) => isSeen(value)).map((point) => ({ ...point, kind: point.one.hollow ? "hollow" : "filled" })),
      ])
      .join("path")
      .attr("class", ({ kind }) => `saelab-mark saelab-mark-${kind}`)
      .classed("saelab-here", (point) => point.kind === "filled" && isHere(point))
      .style("--line", ({ one }) => `var(--saelab-${one.mark.color})`)
      .attr("transform", ({ one, at, value }) => `translate(${x(one, at)},${toY(value)})`)
      .attr("d", (point) => {
        const size = point.kind !== "filled" ? 26 : isHere(point) ? 95 : point.one.isChosen ? 62 : 46;
        return symbol(shapeOf(point.one.mark.shape), size)() ?? "";
      });
    const level = spec.reference?.value ?? NaN;
    const inside = level >= yDomain![0] && level <= yDomain![1];
    for (const mark of [reference, referenceLabel]) mark.attr("display", inside ? null : "none");
    if (!inside) return;
    reference.attr("x1", left).attr("x2", right).attr("y1", toY(level)).attr("y2", toY(level));
    referenceLabel.attr("x", right).attr("y", toY(level) - 4);
  }

  return {
    element: plot.element,
    caption: plot.caption,
    describe: plot.describe,
    draw({ series, chosen, value }) {
      latest = { series, chosen };
      plot.showValue(value);
      const columns = series.flatMap((one) => [one.values, one.low ?? [], one.high ?? []]);
      yDomain = calmDomain(yDomain, extentOf(columns, spec.scale), spec.domain, spec.scale);
      const xDomain: Domain = [-0.5, layers.length - 0.5];
      plot.draw({ domain: xDomain, scale: "linear", ticks }, { domain: yDomain, scale: spec.scale }, paint);
    },
  };
}

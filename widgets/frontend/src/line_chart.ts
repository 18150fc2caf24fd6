import { select } from "d3-selection";
import { line } from "d3-shape";
import { lastDefined } from "./buffers";
import { axisPosition, calmDomain, type Domain, extentOf, type ScaleKind } from "./chart_scale";
import { h, setText } from "./dom";
import { formatFixed } from "./format";
import { createPlot, type Frame } from "./plot";
import type { ChartSpec } from "./specs";

export interface ChartEvent {
  step: number;
  label: string;
}

/** A curve of before, in grey behind the others. */
export interface Ghost {
  label: string;
  x: Float32Array;
  y: Float32Array;
}

export interface ChartData {
  x: Float32Array;
  xDomain: Domain;
  y: Float32Array;
  /** In the order of the spec's. */
  others: readonly Float32Array[];
  events?: readonly ChartEvent[];
  ghosts?: readonly Ghost[];
  /** Where on the x axis the value is read; the last point by default. */
  cursor?: number;
  /** What is true at the cursor, where the curve doesn't say it: between its points, or of something else. */
  value?: number;
}

export interface LineChart {
  readonly element: HTMLElement;
  draw(data: ChartData): void;
  /** Tells screen readers the current value. Kept apart from drawing, which comes too often to be read out. */
  describe(): void;
}

export interface LineChartOptions {
  /** Whether the latest event is named above its mark. */
  labelsEvents?: boolean;
  xLabel?: string;
  xScale?: ScaleKind;
  height?: number;
}

/** A letter of the chart's small text is about this wide; measuring would force a layout at each frame. */
const LETTER = 5.8;

type Point = [number, number];

/** What a column says at `x`, between its points along a straight line; NaN outside of them. `xs` must rise. */
export function valueAt(xs: Float32Array, ys: Float32Array, x: number): number {
  let [x0, y0] = [NaN, NaN];
  for (let row = 0; row < xs.length; row++) {
    const [x1, y1] = [xs[row]!, ys[row]!];
    if (!Number.isFinite(y1)) continue;
    if (Math.abs(x1 - x) < 1e-6) return y1;
    if (x1 > x) return x0 < x ? y0 + ((y1 - y0) * (x - x0)) / (x1 - x0) : NaN;
    [x0, y0] = [x1, y1];
  }
  return NaN;
}

/** Whether an axis of this kind has a place for any of the numbers: a line without one has no key either. */
export const isDrawable = (column: Iterable<number>, kind: ScaleKind): boolean => extentOf([column], kind) !== null;

/** The name of a line after a piece of it; `dash` is empty for a solid one, and not given for the usual dashes. */
export function createKey(label: string, color: string, dash?: string): HTMLElement {
  const key = h("span", { class: "saelab-chart-key" });
  key.style.setProperty("--line", `var(--saelab-${color})`);
  if (dash !== undefined) {
    key.classList.add("saelab-chart-key-own");
    const piece = select(key).append("svg").attr("aria-hidden", "true").attr("width", 26).attr("height", 8);
    piece.append("path").attr("class", "saelab-line").attr("d", "M0,4H26").style("stroke-dasharray", dash);
  }
  key.append(label);
  return key;
}

/** The library's one small line chart: curves over an x axis, with the current value beside the label. */
export function createLineChart(spec: ChartSpec, life: AbortSignal, options: LineChartOptions = {}): LineChart {
  const { labelsEvents = false, xScale = "linear", ...layout } = options;
  const plot = createPlot({ ...spec, name: spec.column, ...layout }, life);
  const keys = spec.others.map(({ label, color, dash }) => createKey(label, color, dash));
  for (const key of keys) plot.caption.append(" ", key);
  const eventLayer = plot.under.append("g").attr("class", "saelab-events");
  const ghostLayer = plot.marks.append("g").attr("class", "saelab-ghosts");
  const reference = plot.marks.append("line").attr("class", "saelab-reference");
  const referenceLabel = plot.marks.append("text").attr("class", "saelab-reference-label").text(spec.reference?.label ?? "");
  const otherPaths = spec.others.map(({ color, dash }) =>
    plot.marks
      .append("path")
      .attr("class", "saelab-line saelab-line-secondary")
      .style("--line", `var(--saelab-${color})`)
      .style("stroke-dasharray", dash ?? ""),
  );
  const mainPath = plot.marks.append("path").attr("class", "saelab-line");
  const cursor = plot.marks.append("line").attr("class", "saelab-cursor").attr("display", "none");
  const dot = plot.marks.append("circle").attr("class", "saelab-dot").attr("r", 3);
  const eventLabel = plot.over.append("text").attr("class", "saelab-event-label");

  let latest: ChartData | null = null;
  let yDomain: Domain | null = null;

  /** Where the value is read, and the value. */
  function current(): Point {
    if (!latest) return [NaN, NaN];
    const { x, y, cursor: at, value } = latest;
    if (at !== undefined) return [at, value ?? valueAt(x, y, at)];
    let row = y.length - 1;
    while (row >= 0 && !Number.isFinite(y[row])) row--;
    return [x[row] ?? NaN, y[row] ?? NaN];
  }

  function paint({ toX, toY, left, right, top, bottom }: Frame): void {
    // A quantity that is measured at some rows only: the line runs through these.
    const path = (x: Float32Array, column: Float32Array): string => {
      const points: Point[] = [];
      column.forEach((v, row) => {
        const inside = Number.isFinite(axisPosition(x[row]!, xScale)) && Number.isFinite(axisPosition(v, spec.scale));
        if (inside) points.push([toX(x[row]!), toY(v)]);
      });
      return line()(points) ?? "";
    };
    const { x, y, others, ghosts = [], cursor: at } = latest!;
    mainPath.attr("d", path(x, y));
    otherPaths.forEach((one, index) => one.attr("d", path(x, others[index]!)));
    ghostLayer
      .selectAll<SVGPathElement, Ghost>("path")
      .data(ghosts)
      .join((enter) => enter.append("path").attr("class", "saelab-ghost").call((made) => made.append("title")))
      .attr("d", (ghost) => path(ghost.x, ghost.y))
      .each(function ({ label }) {
        setText(this.firstElementChild!, label);
      });
    const [dotX, dotY] = current();
    const seen = Number.isFinite(axisPosition(dotY, spec.scale));
    dot.attr("display", seen ? null : "none");
    if (seen) dot.attr("cx", toX(dotX)).attr("cy", toY(dotY));
    cursor.attr("display", at === undefined ? "none" : null);
    if (at !== undefined) cursor.attr("x1", toX(at)).attr("x2", toX(at)).attr("y1", top).attr("y2", bottom);
    paintReference(toY, left, right, top);
    paintEvents(toX, left, right, top, bottom);
  }

  function paintReference(toY: Frame["toY"], left: number, right: number, top: number): void {
    const level = spec.reference?.value ?? NaN;
    const inside = yDomain !== null && level >= yDomain[0] && level <= yDomain[1];
    for (const mark of [reference, referenceLabel]) mark.attr("display", inside ? null : "none");
    if (!inside) return;
    const at = toY(level);
    reference.attr("x1", left).attr("x2", right).attr("y1", at).attr("y2", at);
    // Above the line, or below it where there is no room above.
    referenceLabel.attr("x", right).attr("y", at - top < 12 ? at + 12 : at - 4);
  }

  function paintEvents(toX: Frame["toX"], left: number, right: number, top: number, bottom: number): void {
    const { xDomain, events = [] } = latest!;
    const seen = events.filter(({ step }) => step >= xDomain[0] && step <= xDomain[1]);
    // Marks are kept and moved, not made anew: a tooltip that is open stays open.
    const marks = eventLayer
      .selectAll<SVGGElement, ChartEvent>("g")
      .data(seen)
      .join((enter) => {
        const group = enter.append("g");
        group.append("title");
        group.append("line").attr("class", "saelab-event");
        group.append("line").attr("class", "saelab-event-hit");
        return group;
      });
    marks.attr("transform", ({ step }) => `translate(${toX(step)},0)`);
    marks.each(function ({ label }) {
      setText(this.firstElementChild!, label);
      select(this).selectAll("line").attr("y1", top).attr("y2", bottom);
    });

    const last = seen.at(-1);
    const half = ((last?.label.length ?? 0) * LETTER) / 2;
    const fits = labelsEvents && last !== undefined && left + half <= right - half;
    // In the middle above its mark, or as near to it as the edges let it be.
    if (fits) eventLabel.attr("y", top - 5).attr("x", Math.min(Math.max(toX(last.step), left + half), right - half));
    eventLabel.attr("display", fits ? null : "none");
    setText(eventLabel.node()!, fits ? last.label : "");
  }

  function describe(): void {
    const value = current()[1];
    const measured = `${formatFixed(value, spec.digits)} ${spec.unit}`.trim();
    const parts = [`${spec.label}: ${Number.isFinite(value) ? measured : "not measured yet"}.`];
    spec.others.forEach(({ label }, index) => {
      const column = latest?.others[index] ?? new Float32Array(0);
      const at = latest?.cursor;
      const other = at === undefined ? lastDefined(column) : valueAt(latest!.x, column, at);
      if (Number.isFinite(other)) parts.push(`${label}: ${formatFixed(other, spec.digits)}.`);
    });
    if (spec.reference) parts.push(`${spec.reference.label}: ${formatFixed(spec.reference.value, spec.digits)}.`);
    plot.describe(parts.join(" "));
  }
  describe();

  return {
    element: plot.element,
    describe,
    draw(data) {
      latest = data;
      plot.showValue(current()[1]);
      keys.forEach((key, index) => {
        // It keeps its place, so that nothing on the page moves.
        key.classList.toggle("saelab-hidden", !isDrawable(data.others[index] ?? [], spec.scale));
      });
      const ghosts = (data.ghosts ?? []).map(({ y }) => y);
      const fixed = [spec.least ?? NaN, spec.reference?.value ?? NaN];
      const extent = extentOf([data.y, ...data.others, ...ghosts, fixed], spec.scale);
      yDomain = calmDomain(yDomain, extent, spec.domain, spec.scale);
      plot.draw({ domain: data.xDomain, scale: xScale }, { domain: yDomain, scale: spec.scale }, paint);
    },
  };
}

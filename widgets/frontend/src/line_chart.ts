import { axisBottom, axisLeft } from "d3-axis";
import { scaleLinear, scaleLog } from "d3-scale";
import { select } from "d3-selection";
import { line } from "d3-shape";
import { lastDefined } from "./buffers";
import { axisPosition, axisTicks, calmDomain, type Domain, extentOf, type ScaleKind } from "./chart_scale";
import { h, setText, uniqueId } from "./dom";
import { formatFixed, formatShort } from "./format";
import "./line_chart.css";

export interface ChartSpec {
  column: string;
  label: string;
  unit: string;
  help: string;
  /** Limits of the y axis; null: from the data. */
  domain: readonly [number | null, number | null];
  scale: ScaleKind;
  reference: { value: number; label: string } | null;
  /** A column drawn as a thinner dashed line, or null. */
  secondary: string | null;
  digits: number;
  /** Names a colour variable of the theme. */
  color: string;
}

export interface ChartEvent {
  step: number;
  label: string;
}

export interface ChartData {
  x: Float32Array;
  xDomain: Domain;
  y: Float32Array;
  secondary: Float32Array;
  events: readonly ChartEvent[];
}

export interface LineChart {
  readonly element: HTMLElement;
  draw(data: ChartData): void;
  /** Tells screen readers the current value. Kept apart from drawing, which comes too often to be read out. */
  describe(): void;
}

const HEIGHT = 141;
const MARGIN = { top: 18, right: 12, bottom: 20, left: 40 };
/** A letter of the chart's small text is about this wide; measuring would force a layout at each frame. */
const LETTER = 5.8;

/** About how many ticks a y axis has. */
const TICKS = 3;

type Point = [number, number];

/**
 * The library's one small line chart: a curve over training steps, with the current value beside the label. With
 * `labelsEvents` the latest event is named above its mark.
 */
export function createLineChart(spec: ChartSpec, labelsEvents: boolean, life: AbortSignal): LineChart {
  const value = h("span", { class: "saelab-chart-value" }, "–");
  const caption = h("p", { class: "saelab-help" }, spec.help);
  if (spec.secondary) {
    caption.append(" ", h("span", { class: "saelab-chart-key" }, spec.secondary.replaceAll("_", " ")));
  }
  const element = h(
    "div",
    { class: "saelab-chart", "data-chart": spec.column, "data-value": "" },
    h(
      "div",
      { class: "saelab-chart-head" },
      h("span", { class: "saelab-chart-label" }, spec.label),
      h("span", {}, value, ...(spec.unit ? [h("span", { class: "saelab-unit" }, spec.unit)] : [])),
    ),
    caption,
  );
  element.style.setProperty("--line", `var(--saelab-${spec.color})`);
  element.style.setProperty("--ink", `var(--saelab-${spec.color}-ink)`);

  const clip = uniqueId("clip");
  const svg = select(element).append("svg").attr("role", "img").attr("height", HEIGHT);
  const clipRect = svg.append("clipPath").attr("id", clip).append("rect").attr("y", 0).attr("height", HEIGHT);
  const yAxis = svg.append("g").attr("class", "saelab-axis saelab-axis-y").attr("transform", `translate(${MARGIN.left},0)`);
  const xAxis = svg.append("g").attr("class", "saelab-axis").attr("transform", `translate(0,${HEIGHT - MARGIN.bottom})`);
  const eventLayer = svg.append("g").attr("class", "saelab-events");
  const plot = svg.append("g").attr("clip-path", `url(#${clip})`);
  const reference = plot.append("line").attr("class", "saelab-reference");
  const secondaryPath = plot.append("path").attr("class", "saelab-line saelab-line-secondary");
  const mainPath = plot.append("path").attr("class", "saelab-line");
  const dot = plot.append("circle").attr("class", "saelab-dot").attr("r", 3);
  const referenceLabel = svg.append("text").attr("class", "saelab-reference-label").text(spec.reference?.label ?? "");
  const eventLabel = svg.append("text").attr("class", "saelab-event-label").attr("y", MARGIN.top - 5);

  let width = 0;
  let latest: ChartData | null = null;
  let yDomain: Domain | null = null;

  function paint(): void {
    if (!latest || width <= MARGIN.left + MARGIN.right) return;
    const { x, xDomain, y, secondary } = latest;
    const right = width - MARGIN.right;
    const bottom = HEIGHT - MARGIN.bottom;
    yDomain = calmDomain(
      yDomain,
      extentOf([y, secondary, spec.reference ? [spec.reference.value] : []], spec.scale),
      spec.domain,
      spec.scale,
    );
    const toX = scaleLinear(xDomain, [MARGIN.left, right]);
    const toY = (spec.scale === "log" ? scaleLog : scaleLinear)(yDomain, [bottom, MARGIN.top]);

    svg.attr("viewBox", `0 0 ${width} ${HEIGHT}`);
    clipRect.attr("x", MARGIN.left - 4).attr("width", right - MARGIN.left + 8);
    const yTicks = axisTicks(yDomain, spec.scale, TICKS);
    // Equal decimals on a linear axis; on a log axis d3's own format would leave some ticks without a number.
    const yFormat = spec.scale === "log" || yDomain[1] >= 10_000 ? formatShort : scaleLinear(yDomain, []).tickFormat(TICKS);
    const left = axisLeft(toY).tickValues(yTicks).tickFormat((tick) => yFormat(Number(tick)));
    const below = axisBottom(toX).ticks(4).tickFormat((tick) => formatShort(Number(tick)));
    yAxis.call(left.tickSize(MARGIN.left - right).tickPadding(6));
    xAxis.call(below.tickSize(4).tickPadding(3));

    // A quantity that is measured at some rows only: the line runs through these.
    const points = (column: Float32Array): Point[] => {
      const out: Point[] = [];
      column.forEach((v, row) => {
        if (Number.isFinite(x[row]) && Number.isFinite(axisPosition(v, spec.scale))) out.push([toX(x[row]!), toY(v)]);
      });
      return out;
    };
    const main = points(y);
    mainPath.attr("d", line()(main) ?? "");
    secondaryPath.attr("d", line()(points(secondary)) ?? "");
    const end = main.at(-1);
    dot.attr("display", end ? null : "none");
    if (end) dot.attr("cx", end[0]).attr("cy", end[1]);

    paintReference(toY, right);
    paintEvents(toX, right, bottom);
  }

  function paintReference(toY: (value: number) => number, right: number): void {
    const level = spec.reference?.value ?? NaN;
    const inside = yDomain !== null && level >= yDomain[0] && level <= yDomain[1];
    for (const mark of [reference, referenceLabel]) mark.attr("display", inside ? null : "none");
    if (!inside) return;
    const at = toY(level);
    reference.attr("x1", MARGIN.left).attr("x2", right).attr("y1", at).attr("y2", at);
    // Above the line, or below it where there is no room above.
    referenceLabel.attr("x", right).attr("y", at - MARGIN.top < 12 ? at + 12 : at - 4);
  }

  function paintEvents(toX: (step: number) => number, right: number, bottom: number): void {
    const seen = latest!.events.filter(({ step }) => step >= latest!.xDomain[0] && step <= latest!.xDomain[1]);
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
    marks.selectAll("line").attr("y1", MARGIN.top).attr("y2", bottom);
    marks.each(function ({ label }) {
      setText(this.firstElementChild!, label);
    });

    const last = seen.at(-1);
    const half = ((last?.label.length ?? 0) * LETTER) / 2;
    const fits = labelsEvents && last !== undefined && MARGIN.left + half <= right - half;
    // In the middle above its mark, or as near to it as the edges let it be.
    if (fits) eventLabel.attr("x", Math.min(Math.max(toX(last.step), MARGIN.left + half), right - half));
    eventLabel.attr("display", fits ? null : "none");
    setText(eventLabel.node()!, fits ? last.label : "");
  }

  function describe(): void {
    const current = latest ? lastDefined(latest.y) : NaN;
    const measured = `${formatFixed(current, spec.digits)} ${spec.unit}`.trim();
    const parts = [`${spec.label}: ${Number.isFinite(current) ? measured : "not measured yet"}.`];
    const other = latest ? lastDefined(latest.secondary) : NaN;
    if (spec.secondary && Number.isFinite(other)) {
      parts.push(`${spec.secondary.replaceAll("_", " ")}: ${formatFixed(other, spec.digits)}.`);
    }
    if (spec.reference) parts.push(`${spec.reference.label}: ${formatFixed(spec.reference.value, spec.digits)}.`);
    svg.attr("aria-label", parts.join(" "));
  }

  const observer = new ResizeObserver(([entry]) => {
    width = entry!.contentRect.width;
    paint();
  });
  observer.observe(svg.node()!);
  life.addEventListener("abort", () => observer.disconnect());
  describe();

  return {
    element,
    describe,
    draw(data) {
      latest = data;
      const current = lastDefined(data.y);
      setText(value, formatFixed(current, spec.digits));
      // Seven figures are all that a float32 knows.
      element.dataset.value = Number.isFinite(current) ? String(Number(current.toPrecision(7))) : "";
      paint();
    },
  };
}

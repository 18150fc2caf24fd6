import { axisBottom, axisLeft } from "d3-axis";
import { type ScaleContinuousNumeric, scaleLinear, scaleLog } from "d3-scale";
import { select, type Selection } from "d3-selection";
import { axisTicks, type Domain, type ScaleKind } from "./chart_scale";
import { h, setText, uniqueId } from "./dom";
import { formatFixed, formatShort } from "./format";
import "./plot.css";

export interface PlotSpec {
  /** Names the plot for tests, and its colour variable in the theme. */
  name: string;
  color: string;
  label: string;
  unit: string;
  help: string;
  /** Decimals of the value beside the label. */
  digits: number;
  /** What runs along the x axis, written below it; empty: nothing is written. */
  xLabel?: string;
  /** In pixels, the axes included. */
  height?: number;
  /** Room for the numbers of the y axis, in pixels. */
  left?: number;
}

/** What a plot says of the quantities that it shows. */
export type PlotNames = Pick<PlotSpec, "color" | "label" | "unit" | "help" | "digits" | "xLabel">;

export interface AxisSpec {
  domain: Domain;
  scale: ScaleKind;
  /** Of an x axis: where it has ticks, with what is written there; by default at a few round numbers. */
  ticks?: readonly { at: number; label: string }[];
}

type Group = Selection<SVGGElement, unknown, null, undefined>;
type Scale = ScaleContinuousNumeric<number, number>;

/** Where things lie while a plot is painted, in pixels. */
export interface Frame {
  toX: Scale;
  toY: Scale;
  /** Of the whole drawing, the axes included. */
  width: number;
  height: number;
  left: number;
  right: number;
  top: number;
  bottom: number;
}

export interface Plot {
  readonly element: HTMLElement;
  readonly svg: Selection<SVGSVGElement, unknown, null, undefined>;
  /** Below the marks; not clipped to the axes. */
  readonly under: Group;
  /** Clipped to the axes. */
  readonly marks: Group;
  /** Above the marks; not clipped. */
  readonly over: Group;
  /** The line of help, to which a key can be appended. */
  readonly caption: HTMLElement;
  /** The number beside the label. */
  showValue(value: number): void;
  /** Shows other quantities from now on. */
  rename(names: PlotNames): void;
  /** Sets the axes and paints; both are done again when the width changes. */
  draw(x: AxisSpec, y: AxisSpec, paint: (frame: Frame) => void): void;
  /** Text for screen readers. Kept apart from drawing, which comes too often to be read out. */
  describe(text: string): void;
}

const MARGIN = { top: 18, right: 12, bottom: 20, left: 40 };
const LABEL_HEIGHT = 15;
/** About how many ticks a y axis has. */
const TICKS = 3;

const scaleOf = ({ domain, scale }: AxisSpec, range: [number, number]): Scale =>
  scale === "log" ? scaleLog(domain, range) : scaleLinear(domain, range);

/** The library's one frame for marks: head with label and value, axes with few ticks, a caption. */
export function createPlot(spec: PlotSpec, life: AbortSignal): Plot {
  let digits = spec.digits;
  const label = h("span", { class: "saelab-chart-label" }, spec.label);
  const value = h("span", { class: "saelab-chart-value" }, "–");
  const unit = h("span", { class: "saelab-unit" }, spec.unit);
  unit.hidden = !spec.unit;
  const caption = h("p", { class: "saelab-help" }, spec.help);
  const element = h(
    "div",
    { class: "saelab-chart", "data-chart": spec.name, "data-value": "" },
    h(
      "div",
      { class: "saelab-chart-head" },
      label,
      h("span", {}, value, unit),
    ),
    caption,
  );
  const paintIn = (color: string): void => {
    element.style.setProperty("--line", `var(--saelab-${color})`);
    element.style.setProperty("--ink", `var(--saelab-${color}-ink, var(--saelab-text))`);
  };
  paintIn(spec.color);

  const height = (spec.height ?? 141) + (spec.xLabel ? LABEL_HEIGHT : 0);
  const bottom = height - MARGIN.bottom - (spec.xLabel ? LABEL_HEIGHT : 0);
  const left = spec.left ?? MARGIN.left;
  const clip = uniqueId("clip");
  const svg = select(element).append("svg").attr("role", "img").attr("height", height);
  const clipRect = svg.append("clipPath").attr("id", clip).append("rect");
  const yAxis = svg.append("g").attr("class", "saelab-axis saelab-axis-y").attr("transform", `translate(${left},0)`);
  const xAxis = svg.append("g").attr("class", "saelab-axis").attr("transform", `translate(0,${bottom})`);
  const xLabel = svg.append("text").attr("class", "saelab-x-label").attr("y", height - 3).text(spec.xLabel ?? "");
  const under = svg.append("g");
  const marks = svg.append("g").attr("clip-path", `url(#${clip})`);
  const over = svg.append("g");

  let width = 0;
  let axesKey = "";
  let latest: { x: AxisSpec; y: AxisSpec; paint: (frame: Frame) => void } | null = null;

  function paintAxes(x: AxisSpec, y: AxisSpec, toX: Scale, toY: Scale, right: number): void {
    svg.attr("viewBox", `0 0 ${width} ${height}`);
    // With room for half a mark around the axes.
    clipRect.attr("x", left - 4).attr("width", right - left + 8).attr("y", MARGIN.top - 4).attr("height", bottom - MARGIN.top + 8);
    xLabel.attr("x", (left + right) / 2);
    // Equal decimals on a linear axis; on a log axis d3's own format would leave some ticks without a number.
    const yCount = Math.max(TICKS, Math.round((bottom - MARGIN.top) / 42));
    const yFormat = y.scale === "log" || y.domain[1] >= 10_000 ? formatShort : scaleLinear(y.domain, []).tickFormat(yCount);
    const yTicks = axisTicks(y.domain, y.scale, yCount);
    const xTicks = axisTicks(x.domain, x.scale, Math.max(3, Math.min(8, Math.round((right - left) / 70))));
    const beside = axisLeft(toY).tickValues(yTicks).tickFormat((tick) => yFormat(Number(tick)));
    const named = x.ticks && new Map(x.ticks.map(({ at, label }) => [at, label]));
    const below = axisBottom(toX)
      .tickValues(named ? named.keys() : xTicks)
      .tickFormat((tick) => named?.get(Number(tick)) ?? formatShort(Number(tick)));
    yAxis.call(beside.tickSize(left - right).tickPadding(6));
    xAxis.call(below.tickSize(4).tickPadding(3));
  }

  function paint(): void {
    if (!latest || width <= left + MARGIN.right) return;
    const { x, y } = latest;
    const right = width - MARGIN.right;
    const toX = scaleOf(x, [left, right]);
    const toY = scaleOf(y, [bottom, MARGIN.top]);
    // Axes cost more than all else, and seldom change.
    const key = JSON.stringify([width, x, y]);
    if (key !== axesKey) paintAxes(x, y, toX, toY, right);
    axesKey = key;
    latest.paint({ toX, toY, width, height, left, right, top: MARGIN.top, bottom });
  }

  const observer = new ResizeObserver(([entry]) => {
    width = entry!.contentRect.width;
    paint();
  });
  observer.observe(svg.node()!);
  life.addEventListener("abort", () => observer.disconnect());

  return {
    element,
    svg,
    under,
    marks,
    over,
    caption,
    showValue(current) {
      setText(value, formatFixed(current, digits));
      // Seven figures are all that a float32 knows.
      element.dataset.value = Number.isFinite(current) ? String(Number(current.toPrecision(7))) : "";
    },
    rename(names) {
      digits = names.digits;
      setText(label, names.label);
      setText(unit, names.unit);
      unit.hidden = !names.unit;
      setText(caption, names.help);
      xLabel.text(names.xLabel ?? "");
      paintIn(names.color);
    },
    draw(x, y, how) {
      latest = { x, y, paint: how };
      paint();
    },
    describe(text) {
      svg.attr("aria-label", text);
    },
  };
}

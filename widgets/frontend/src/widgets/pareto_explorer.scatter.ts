import { create, select } from "d3-selection";
import { line, symbol } from "d3-shape";
import { calmDomain, type Domain, extentOf } from "../chart_scale";
import { KEEP_KEYS } from "../dom";
import { groupRows, meansAlong, nearestRow, placeAfterKey, roundLimits, rowsAlong, type Spot } from "../pareto_explorer_math";
import { createPlot, type Frame } from "../plot";
import { shapeOf } from "../shapes";
import type { QuantitySpec, SeriesSpec } from "../specs";

/** One axis: its quantity, and a number of it for each row. */
export interface Axis {
  quantity: QuantitySpec;
  values: Float32Array;
}

export interface ScatterData {
  x: Axis;
  y: Axis;
  /** Of each row. */
  series: readonly SeriesSpec[];
  /** Of each row; one line runs through all with equal ones. */
  lines: readonly number[];
  /** Of each row; the line takes the mean of those with equal ones. */
  points: readonly number[];
  included: (row: number) => boolean;
  /** What is said of a row. */
  labelOf: (row: number) => string;
}

export interface Scatter {
  readonly element: HTMLElement;
  draw(data: ScatterData): void;
  /** Puts the ring around another mark; -1: around none. */
  choose(row: number): void;
}

/** Area of a mark, in square pixels. */
const SIZE = 62;
/** Radius of what takes a click, in pixels. */
const HIT = 13;
const HEIGHT = 372;

const pathOf = ({ shape }: SeriesSpec): string => symbol(shapeOf(shape), SIZE)() ?? "";

/** An architecture's mark on its own, for a key; of a control, on a piece of its line. */
export function createKey(series: SeriesSpec): SVGSVGElement {
  const half = series.dash ? 20 : 8;
  const svg = create("svg:svg").attr("class", "saelab-mark-key").attr("aria-hidden", "true");
  svg.attr("width", 2 * half).attr("viewBox", `${-half} -8 ${2 * half} 16`).style("--mark", `var(--saelab-${series.color})`);
  if (series.dash) {
    const piece = svg.append("path").attr("class", "saelab-key-line").attr("d", `M${-half},0H${half}`);
    // The offset keeps the gaps of a long pattern out from behind the mark.
    piece.attr("stroke-dasharray", series.dash).attr("stroke-dashoffset", 4);
  }
  svg.append("path").attr("class", "saelab-key-mark").attr("d", pathOf(series));
  return svg.node() as SVGSVGElement;
}

/** The unit, unless the label says it: dead features are counted in features. */
export const unitOf = ({ label, unit }: QuantitySpec): string => (label.toLowerCase().includes(unit) ? "" : unit);

/** Marks of SAEs over two quantities: a list box, of which each mark is an option, in order of x. */
export function createScatter(life: AbortSignal, onChoose: (row: number) => void, onPoint: (row: number) => void): Scatter {
  const unnamed = { color: "text", label: "", unit: "", help: "", digits: 0, xLabel: " " };
  const plot = createPlot({ ...unnamed, name: "scatter", height: HEIGHT, left: 46 }, life);
  plot.svg.attr("role", "group").classed("saelab-scatter", true);
  plot.svg.selectAll(".saelab-axis, .saelab-x-label").attr("aria-hidden", "true");
  const references = { x: plot.under.append("g"), y: plot.under.append("g") };
  for (const group of Object.values(references)) {
    group.attr("aria-hidden", "true").append("line").attr("class", "saelab-reference");
    group.append("text").attr("class", "saelab-reference-label");
  }
  const lineLayer = plot.marks.append("g").attr("class", "saelab-scatter-lines");
  const ring = plot.over.append("circle").attr("class", "saelab-ring").attr("r", 9.5);
  const list = plot.over.append("g").attr("role", "listbox").attr("aria-orientation", "horizontal");
  const empty = plot.over.append("text").attr("class", "saelab-x-label").text("No SAE to show here.");

  let latest: ScatterData | null = null;
  let rows: number[] = [];
  let spots: Spot[] = [];
  let chosen = -1;
  const domains: Record<"x" | "y", { column: string; domain: Domain } | null> = { x: null, y: null };

  const kinds = () => ({ x: latest!.x.quantity.scales.x, y: latest!.y.quantity.scales.y });
  const marks = () => list.selectAll<SVGGElement, number>("g");
  const markOf = (row: number): SVGGElement | undefined => marks().nodes()[rows.indexOf(row)];

  function domainOf(name: "x" | "y", { quantity, values }: Axis): Domain {
    const kind = quantity.scales[name];
    const reference = quantity.reference ? [quantity.reference.value] : [];
    const extent = extentOf([rows.map((row) => values[row]!), rows.length ? reference : []], kind);
    const before = domains[name];
    // With no mark left, the axes stay as they are.
    const previous = before?.column === quantity.column ? before.domain : null;
    const domain = previous && !extent ? previous : calmDomain(previous, extent, [null, null], kind, roundLimits);
    domains[name] = { column: quantity.column, domain };
    return domain;
  }

  function paint({ toX, toY, left, right, top, bottom }: Frame): void {
    const { x, y, series, lines, points, included, labelOf } = latest!;
    spots = rows.map((row) => ({ row, x: toX(x.values[row]!), y: toY(y.values[row]!) }));
    const spotOf = new Map(spots.map((spot) => [spot.row, spot]));
    // A point is left out where one of its rows has no place, so all rows are asked.
    const all = [...lines.keys()].filter(included);
    const through = [...groupRows(all, (row) => lines[row]!).values()]
      .map((some) => ({ look: series[some[0]!]!, corners: meansAlong(some, x.values, y.values, kinds(), (row) => points[row]!) }))
      .filter(({ corners }) => corners.length);
    const path = line<[number, number]>(
      ([atX]) => toX(atX),
      ([, atY]) => toY(atY),
    );
    lineLayer
      .selectAll("path")
      .data(through)
      .join("path")
      .style("--mark", ({ look }) => `var(--saelab-${look.color})`)
      .attr("stroke-dasharray", ({ look }) => look.dash || null)
      .attr("d", ({ corners }) => path(corners));

    const inside = (value: number | undefined, [lo, hi]: Domain): value is number => value !== undefined && value >= lo && value <= hi;
    const across = y.quantity.reference;
    const up = x.quantity.reference;
    const [seenAcross, seenUp] = [inside(across?.value, domains.y!.domain), inside(up?.value, domains.x!.domain)];
    references.y.attr("display", seenAcross ? null : "none").select("text").text(across?.label ?? "");
    references.x.attr("display", seenUp ? null : "none").select("text").text(up?.label ?? "");
    if (seenAcross) {
      const at = toY(across!.value);
      references.y.select("line").attr("x1", left).attr("x2", right).attr("y1", at).attr("y2", at);
      references.y.select("text").attr("x", right).attr("y", at - top < 12 ? at + 12 : at - 4);
    }
    if (seenUp) {
      const at = toX(up!.value);
      references.x.select("line").attr("x1", at).attr("x2", at).attr("y1", top).attr("y2", bottom);
      references.x.select("text").attr("x", at - 4).attr("y", top + 8);
    }
    paintMarks(series, labelOf, spotOf);
    empty.attr("display", rows.length ? "none" : null).attr("x", (left + right) / 2).attr("y", (top + bottom) / 2);
  }

  function paintMarks(series: readonly SeriesSpec[], labelOf: (row: number) => string, spotOf: Map<number, Spot>): void {
    const focused = (list.node()!.getRootNode() as Document | ShadowRoot).activeElement;
    marks()
      .data(rows, (row) => row)
      .join((enter) => {
        const mark = enter.append("g").attr("role", "option").attr("class", "saelab-mark");
        for (const [name, value] of Object.entries(KEEP_KEYS)) mark.attr(name, value);
        mark.append("circle").attr("class", "saelab-hit").attr("r", HIT);
        mark.append("path");
        return mark;
      })
      .attr("data-row", (row) => row)
      .attr("aria-label", labelOf)
      .attr("transform", (row) => `translate(${spotOf.get(row)!.x},${spotOf.get(row)!.y})`)
      .style("--mark", (row) => `var(--saelab-${series[row]!.color})`)
      .select("path")
      .attr("d", (row) => pathOf(series[row]!));
    list.attr("display", rows.length ? null : "none");
    // A mark that has moved in the list has lost its focus.
    if (focused instanceof SVGElement && list.node()!.contains(focused)) focused.focus({ preventScroll: true });
    showChosen();
  }

  function showChosen(): void {
    const spot = spots.find(({ row }) => row === chosen);
    const reached = spot ? chosen : rows[0];
    marks()
      .attr("aria-selected", (row) => String(row === chosen))
      .attr("tabindex", (row) => (row === reached ? 0 : -1));
    ring.attr("display", spot ? null : "none");
    if (spot) ring.attr("cx", spot.x).attr("cy", spot.y);
    plot.showValue(latest?.y.values[chosen] ?? NaN);
  }

  const rowAt = (event: MouseEvent, takeTurns: boolean): number => {
    const box = plot.svg.node()!.getBoundingClientRect();
    return nearestRow(spots, event.clientX - box.x, event.clientY - box.y, HIT + 3, takeTurns ? chosen : -1);
  };
  const rowOf = (target: EventTarget | null): number => {
    const mark = (target as Element).closest<SVGGElement>(".saelab-mark");
    return mark ? Number(mark.dataset.row) : -1;
  };
  const take = (row: number): void => {
    if (row < 0) return;
    onChoose(row);
    markOf(row)?.focus({ preventScroll: true });
  };
  const node = plot.svg.node()!;
  // A click that assistive technology makes lies on a mark, and not between some.
  node.addEventListener("click", (event) => take(event.detail === 0 ? rowOf(event.target) : rowAt(event, true)));
  node.addEventListener("pointermove", (event) => {
    const row = rowAt(event, false);
    select(node).classed("saelab-pointing", row >= 0);
    marks().classed("saelab-hovered", (one) => one === row);
    onPoint(row);
  });
  node.addEventListener("pointerleave", () => {
    select(node).classed("saelab-pointing", false);
    marks().classed("saelab-hovered", false);
    onPoint(-1);
  });
  node.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const place = placeAfterKey(event.key, rows.indexOf(rowOf(event.target)), rows.length);
    if (place === null || rowOf(event.target) < 0) return;
    event.preventDefault();
    take(rows[place]!);
  });

  return {
    element: plot.element,
    draw(data) {
      latest = data;
      const { x, y } = data;
      rows = rowsAlong(x.values, y.values, kinds(), data.included);
      const unit = unitOf(x.quantity);
      plot.rename({ ...y.quantity, xLabel: unit ? `${x.quantity.label}, ${unit}` : x.quantity.label });
      plot.describe(`${y.quantity.label} against ${x.quantity.label}`);
      list.attr("aria-label", `SAEs in order of ${x.quantity.label}`);
      plot.draw(
        { domain: domainOf("x", x), scale: x.quantity.scales.x },
        { domain: domainOf("y", y), scale: y.quantity.scales.y },
        paint,
      );
    },
    choose(row) {
      chosen = row;
      showChosen();
    },
  };
}

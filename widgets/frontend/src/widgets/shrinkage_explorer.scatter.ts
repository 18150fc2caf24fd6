import { line } from "d3-shape";
import { calmDomain, type Domain, extentOf } from "../chart_scale";
import { h } from "../dom";
import { formatFixed } from "../format";
import { createKey } from "../line_chart";
import { createPlot, type Frame } from "../plot";
import type { Line, Magnitudes } from "../shrinkage_math";
import { onThemeChange } from "../theme_change";

export interface ScatterData {
  magnitudes: Magnitudes;
  /** The line of least squares before repair, where there is a repair. */
  before: Line | null;
  /** The greatest true magnitude at this noise, whatever the L1: the axes stay while L1 moves. */
  reach: number;
  l1: number;
}

export interface Scatter {
  readonly element: HTMLElement;
  draw(data: ScatterData): void;
  describe(): void;
}

/** Length of a mark on an axis, and radius of a point, in pixels. */
const TICK = 8;
const RADIUS = 1.8;

/** True against learned magnitudes. The points are thousands, so they are on a canvas behind the drawing. */
export function createScatter(root: HTMLElement, life: AbortSignal, height: number): Scatter {
  const plot = createPlot(
    {
      name: "magnitudes",
      color: "gamma",
      label: "True and learned magnitude",
      unit: "slope",
      help: "Each feature that is on:",
      digits: 2,
      xLabel: "true magnitude",
      height,
    },
    life,
  );
  plot.element.classList.add("saelab-scatter");
  const marks = Object.fromEntries(
    (["found", "missed", "false alarm"] as const).map((name) => [
      name,
      h("span", { class: "saelab-mark-key", "data-mark": name.replace(" ", "-") }, name),
    ]),
  ) as Record<"found" | "missed" | "false alarm", HTMLElement>;
  for (const key of [
    ...Object.values(marks),
    createKey("least squares", "gamma", ""),
    createKey("not shrunk", "muted", "2 3"),
    createKey("λ/2 below", "muted", "7 3"),
  ]) {
    plot.caption.append(" ", key);
  }
  const canvas = h("canvas", { "aria-hidden": "true" });
  plot.element.insertBefore(canvas, plot.svg.node());

  const straight = plot.marks.append("path").attr("class", "saelab-reference").attr("fill", "none");
  const below = plot.marks.append("path").attr("class", "saelab-reference saelab-reference-long").attr("fill", "none");
  const ghost = plot.marks.append("path").attr("class", "saelab-ghost");
  const fit = plot.marks.append("path").attr("class", "saelab-line").attr("data-line", "least-squares");
  plot.over.append("text").attr("class", "saelab-y-label").attr("x", 2).attr("y", 9).text("learned code");

  let latest: ScatterData | null = null;
  let domain: Domain | null = null;
  let frame: Frame | null = null;
  /** The theme's colours. To read them at each frame would force the page to compute all styles anew. */
  let inks: Record<string, string> | null = null;

  function paint(now: Frame): void {
    frame = now;
    const { toX, toY } = now;
    const { magnitudes, before, reach, l1 } = latest!;
    const through = (from: number, to: number, y: (x: number) => number): string =>
      line()([from, to].map((x) => [toX(x), toY(y(x))])) ?? "";
    straight.attr("d", through(0, reach, (x) => x));
    below.attr("d", l1 / 2 < reach ? through(l1 / 2, reach, (x) => x - l1 / 2) : "");
    const { x } = magnitudes.found;
    const ends = extentOf([x], "linear");
    for (const [path, fitted] of [[fit, magnitudes.line], [ghost, before]] as const) {
      const drawn = ends && fitted && Number.isFinite(fitted.slope);
      path.attr("d", drawn ? through(...ends, (one) => fitted.slope * one + fitted.at0) : "");
    }
    paintPoints();
  }

  function paintPoints(): void {
    if (!latest || !frame) return;
    const { toX, toY, width, height: tall, left, bottom, right, top } = frame;
    const { found, missed, falseAlarms } = latest.magnitudes;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio); // empties it, too
    canvas.height = Math.round(tall * ratio);
    canvas.style.height = `${tall}px`;
    const context = canvas.getContext("2d")!;
    context.scale(ratio, ratio);
    inks ??= Object.fromEntries(
      Object.entries(marks).map(([name, mark]) => [name, getComputedStyle(mark).getPropertyValue("outline-color")]),
    );
    const ink = (name: keyof typeof marks): void => {
      context.fillStyle = inks![name]!;
    };
    ink("found");
    context.globalAlpha = 0.55;
    found.x.forEach((one, i) => {
      const [x, y] = [toX(one), toY(found.y[i]!)];
      if (y < top) return;
      context.beginPath();
      context.arc(x, y, RADIUS, 0, 2 * Math.PI);
      context.fill();
    });
    context.globalAlpha = 0.5;
    ink("missed");
    for (const one of missed) {
      const x = toX(one);
      if (x <= right) context.fillRect(x - 0.6, bottom - TICK, 1.2, TICK);
    }
    ink("false alarm");
    for (const one of falseAlarms) {
      const y = toY(one);
      if (y >= top) context.fillRect(left, y - 0.6, TICK, 1.2);
    }
    canvas.dataset.points = String(found.x.length + missed.length + falseAlarms.length);
  }
  onThemeChange(root, life, () => {
    inks = null;
    paintPoints();
  });

  return {
    element: plot.element,
    draw(data) {
      latest = data;
      const { found, falseAlarms, line: through } = data.magnitudes;
      const highest = [...found.y, ...falseAlarms].reduce((most, one) => Math.max(most, one), data.reach);
      domain = calmDomain(domain, [0, highest], [0, null], "linear");
      plot.showValue(through.slope);
      const x: Domain = [0, data.reach];
      plot.draw({ domain: x, scale: "linear" }, { domain, scale: "linear" }, paint);
    },
    describe() {
      if (!latest) return plot.describe("True and learned magnitude: no data yet.");
      const { found, missed, falseAlarms, line: through } = latest.magnitudes;
      const sign = through.at0 < 0 ? "minus" : "plus";
      const equation = `learned = ${formatFixed(through.slope, 2)} × true ${sign} ${formatFixed(Math.abs(through.at0), 2)}`;
      plot.describe(
        `True and learned magnitude. ${found.x.length} found, ${missed.length} missed, ${falseAlarms.length} false alarms. ` +
          (Number.isFinite(through.slope) ? `Least squares: ${equation}.` : "Too few points for a line."),
      );
    },
  };
}

import { ticks } from "d3-array";
import { scaleLinear, scaleLog } from "d3-scale";

export type ScaleKind = "linear" | "log";
export type Domain = [number, number];

/** Where a number lies on an axis of this kind; NaN where a log axis has no place for it. */
export const axisPosition = (value: number, kind: ScaleKind): number =>
  kind === "linear" ? value : value > 0 ? Math.log10(value) : NaN;

/** The smallest and the largest of the numbers that the axis can show. */
export function extentOf(columns: readonly Iterable<number>[], kind: ScaleKind): Domain | null {
  let [lo, hi] = [Infinity, -Infinity];
  for (const column of columns) {
    for (const value of column) {
      if (!Number.isFinite(axisPosition(value, kind))) continue;
      lo = Math.min(lo, value);
      hi = Math.max(hi, value);
    }
  }
  return lo <= hi ? [lo, hi] : null;
}

/** Round limits around an extent. A constant gets room on both sides. */
function niceDomain([lo, hi]: Domain, kind: ScaleKind): Domain {
  if (kind === "log") return scaleLog().domain([lo / 1.05, hi * 1.05]).nice().domain() as Domain;
  const pad = (hi - lo || Math.abs(lo) || 1) * 0.05;
  // Zero is a floor for what is never negative, not a line to cross for the sake of room.
  const from = lo >= 0 ? Math.max(0, lo - pad) : lo - pad;
  return scaleLinear().domain([from, hi + pad]).nice(4).domain() as Domain;
}

/** Below this share of the old axis the data would look flat. */
const LEAST_USE = 0.4;

/**
 * The limits of a y axis. The old ones stay while the data fit into them and fill them well, so that a live chart doesn't
 * breathe with each point. A fixed limit always holds. `nicely` rounds the limits.
 */
export function calmDomain(
  previous: Domain | null,
  extent: Domain | null,
  fixed: readonly [number | null, number | null],
  kind: ScaleKind,
  nicely: (extent: Domain, kind: ScaleKind) => Domain = niceDomain,
): Domain {
  const usable = (limit: number | null): limit is number => limit !== null && Number.isFinite(axisPosition(limit, kind));
  const [fixedLo, fixedHi] = fixed;
  let [lo, hi] = extent ?? (kind === "log" ? [1, 10] : [0, 1]);
  if (usable(fixedLo)) [lo, hi] = [fixedLo, Math.max(hi, fixedLo)];
  if (usable(fixedHi)) [lo, hi] = [Math.min(lo, fixedHi), fixedHi];
  if (previous && extent && previous[0] <= lo && hi <= previous[1]) {
    const span = ([a, b]: Domain): number => axisPosition(b, kind) - axisPosition(a, kind);
    if (span([lo, hi]) >= LEAST_USE * span(previous)) return previous;
  }
  const nice = nicely([lo, hi], kind);
  const from = usable(fixedLo) ? fixedLo : nice[0];
  const to = usable(fixedHi) ? fixedHi : nice[1];
  return from < to ? [from, to] : nice;
}

/** Limits of the axis of steps. The upper one grows in leaps, so that the curve moves right instead of being squeezed. */
export function stepDomain(first: number, last: number, nSteps: number): Domain {
  if (!Number.isFinite(first) || !Number.isFinite(last)) return [0, nSteps > 0 ? nSteps : 1];
  const magnitude = 10 ** Math.floor(Math.log10(Math.max(last, 1)));
  const leap = [1, 1.5, 2, 3, 4, 5, 6, 8].map((m) => m * magnitude).find((limit) => limit >= last) ?? 10 * magnitude;
  const hi = nSteps >= last && nSteps > 0 ? Math.min(leap, nSteps) : leap;
  const lo = first > 0.1 * hi ? first : 0;
  return lo < hi ? [lo, hi] : [lo - 1, hi + 1];
}

/** A few round numbers to label an axis with: on a log axis powers of ten, with 2 and 5 between them where these are few. */
export function axisTicks([lo, hi]: Domain, kind: ScaleKind, count: number): number[] {
  if (kind === "linear") return ticks(lo, hi, count);
  const exponents: number[] = [];
  for (let e = Math.floor(Math.log10(lo)); e <= Math.ceil(Math.log10(hi)); e++) exponents.push(e);
  const within = (mantissas: number[]): number[] =>
    exponents.flatMap((e) => mantissas.map((m) => Number(`${m}e${e}`))).filter((tick) => tick >= lo && tick <= hi);
  const powers = within([1]);
  if (powers.length < 3) return within([1, 2, 5]);
  const stride = Math.ceil(powers.length / (count + 1));
  return powers.filter((_, index) => index % stride === 0);
}

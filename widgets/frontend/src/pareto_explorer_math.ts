import { scaleLinear } from "d3-scale";
import { axisPosition, type Domain, type ScaleKind } from "./chart_scale";

/** A mark on the screen, in pixels. */
export interface Spot {
  row: number;
  x: number;
  y: number;
}

/** Rows that are included and have a place on both axes, in order of x; where x is equal, of y. */
export function rowsAlong(
  x: ArrayLike<number>,
  y: ArrayLike<number>,
  kinds: { x: ScaleKind; y: ScaleKind },
  included: (row: number) => boolean,
): number[] {
  const rows: number[] = [];
  for (let row = 0; row < x.length; row++) {
    const seen = Number.isFinite(axisPosition(x[row]!, kinds.x)) && Number.isFinite(axisPosition(y[row]!, kinds.y));
    if (seen && included(row)) rows.push(row);
  }
  return rows.sort((a, b) => x[a]! - x[b]! || y[a]! - y[b]! || a - b);
}

/** Rows by what `keyOf` says of them, in the order in which they come. */
export function groupRows(rows: readonly number[], keyOf: (row: number) => number): Map<number, number[]> {
  const groups = new Map<number, number[]>();
  for (const row of rows) {
    const group = groups.get(keyOf(row));
    if (group) group.push(row);
    else groups.set(keyOf(row), [row]);
  }
  return groups;
}

/**
 * Corners of a line through some rows, in order of x, then y: of each point the mean of its rows. A point of which a row has
 * no place on either axis is left out.
 */
export function meansAlong(
  rows: readonly number[],
  x: ArrayLike<number>,
  y: ArrayLike<number>,
  kinds: { x: ScaleKind; y: ScaleKind },
  pointOf: (row: number) => number,
): [number, number][] {
  const mean = (values: ArrayLike<number>, some: readonly number[]): number =>
    some.reduce((sum, row) => sum + values[row]!, 0) / some.length;
  return [...groupRows(rows, pointOf).values()]
    .map((some): [number, number] => [mean(x, some), mean(y, some)])
    .filter((at) => Number.isFinite(axisPosition(at[0], kinds.x)) && Number.isFinite(axisPosition(at[1], kinds.y)))
    .sort((a, b) => a[0] - b[0] || a[1] - b[1]);
}

/** Limits of an axis, rounded less coarsely than those of a live chart, which would else move too often. */
export function roundLimits([lo, hi]: Domain, kind: ScaleKind): Domain {
  if (kind === "linear") {
    const pad = (hi - lo || Math.abs(lo) || 1) * 0.04;
    const from = lo >= 0 ? Math.max(0, lo - pad) : lo - pad;
    return scaleLinear().domain([from, hi + pad]).nice(8).domain() as Domain;
  }
  const steps = (value: number): number[] => {
    const exponent = Math.floor(Math.log10(value));
    return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((mantissa) => Number(`${mantissa}e${exponent}`));
  };
  // Some room, so that no mark lies on the edge.
  const [from, to] = [lo / 1.06, hi * 1.06];
  return [steps(from).filter((step) => step <= from).at(-1)!, steps(to).find((step) => step >= to)!];
}

/**
 * The row of the mark nearest to a point, or -1 where none is within `reach`. Marks that lie on one another take turns: the one
 * after `chosen` is next.
 */
export function nearestRow(spots: readonly Spot[], x: number, y: number, reach: number, chosen: number): number {
  const distance = (spot: Spot): number => Math.hypot(spot.x - x, spot.y - y);
  let nearest: Spot | null = null;
  for (const spot of spots) if (distance(spot) <= reach && (!nearest || distance(spot) < distance(nearest))) nearest = spot;
  if (!nearest) return -1;
  const { x: atX, y: atY } = nearest;
  const pile = spots.filter((spot) => Math.hypot(spot.x - atX, spot.y - atY) < 1);
  const turn = pile.findIndex(({ row }) => row === chosen);
  return pile[(turn + 1) % pile.length]!.row;
}

/** The place that a key leads to from `at` among `count` places, or null where the key is none of ours. */
export function placeAfterKey(key: string, at: number, count: number): number | null {
  const places: Record<string, number> = {
    ArrowRight: at + 1,
    ArrowDown: at + 1,
    ArrowLeft: at - 1,
    ArrowUp: at - 1,
    Home: 0,
    End: count - 1,
    Enter: at,
    " ": at,
  };
  const place = places[key];
  return place === undefined ? null : Math.max(0, Math.min(count - 1, place));
}

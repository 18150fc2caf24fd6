import { ratio } from "./ratio";

/** One feature on every token, and the SAE without it; `GateExplorer` in Python says what each is. */
export interface Look {
  feature: number;
  gate_threshold: number;
  natural: number;
  slope: number;
  shift: number;
  /** Squared, of the feature's row of the decoder. */
  norm: number;
  l0: number;
  rr: number;
  xr: number;
  error: number;
  variance: number;
}

export interface Rows {
  piGate: Float32Array;
  alongX: Float32Array;
  /** Of the residual without the feature. */
  alongError: Float32Array;
}

/** The three columns of one of several features whose rows follow one another. */
export function rowsOf(values: Float32Array, nRows: number, place = 0): Rows {
  const column = (index: number): Float32Array =>
    Float32Array.from({ length: nRows }, (_, row) => values[3 * (place * nRows + row) + index] ?? NaN);
  return { piGate: column(0), alongX: column(1), alongError: column(2) };
}

type Line = Pick<Look, "slope" | "shift">;

export const magnitudeAt = (piGate: number, natural: number, { slope, shift }: Line): number =>
  Math.max(0, slope * piGate + (1 - natural) * shift);

/** The code: JumpReLU, with the feature's own threshold. Compared in float32, as Python does. */
export const codeAt = (piGate: number, own: number, natural: number, line: Line): number =>
  piGate > Math.fround(own) ? magnitudeAt(piGate, natural, line) : 0;

export interface FeatureNumbers {
  /** Share of tokens for which it is on. */
  density: number;
  /** Of its code where it is on; NaN where it never is. */
  mean: number;
  largest: number;
}

export function featureNumbers(piGate: Float32Array, own: number, natural: number, line: Line): FeatureNumbers {
  let [on, sum, largest] = [0, 0, 0];
  for (const at of piGate) {
    const code = codeAt(at, own, natural, line);
    if (code <= 0) continue;
    on++;
    sum += code;
    largest = Math.max(largest, code);
  }
  return { density: on / piGate.length, mean: on ? sum / on : NaN, largest };
}

export interface Metrics {
  l0: number;
  gamma: number;
  fvu: number;
}

/** L0, gamma and FVU of the whole SAE, exactly, with another threshold for this feature and all else as it stands. */
export function wholeSae(rows: Rows, look: Look, own: number): Metrics {
  let [on, alongX, alongError, squares] = [0, 0, 0, 0];
  const n = rows.piGate.length;
  for (let row = 0; row < n; row++) {
    const code = codeAt(rows.piGate[row]!, own, look.natural, look);
    if (code <= 0) continue;
    on++;
    alongX += code * rows.alongX[row]!;
    alongError += code * rows.alongError[row]!;
    squares += code * code;
  }
  const error = look.error + (2 * alongError + look.norm * squares) / n;
  const rr = look.rr + (2 * (alongX + alongError) + look.norm * squares) / n;
  const xr = look.xr + alongX / n;
  return { l0: look.l0 + on / n, gamma: ratio(rr, xr), fvu: ratio(error, look.variance) };
}

export interface Bin {
  from: number;
  to: number;
  count: number;
  /** The code with which the feature would serve best, mean over the bin's tokens; NaN in an empty bin. */
  best: number;
}

const BIN_WIDTHS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5];
const MAX_BINS = 70;

/** Tokens by gate pre-activation. The edges are round numbers, as the thresholds are. */
export function binsOf(rows: Rows, norm: number): Bin[] {
  const finite = rows.piGate.filter(Number.isFinite);
  if (finite.length === 0) return [];
  const lo = finite.reduce((least, at) => Math.min(least, at));
  const hi = finite.reduce((most, at) => Math.max(most, at));
  const width = BIN_WIDTHS.find((wide) => (hi - lo) / wide <= MAX_BINS) ?? (hi - lo) / MAX_BINS;
  const first = Math.floor(lo / width);
  const count = Math.floor(hi / width) - first + 1;
  const bins = Array.from({ length: count }, (_, i) => ({ from: (first + i) * width, to: (first + i + 1) * width, count: 0, best: 0 }));
  rows.piGate.forEach((at, row) => {
    const bin = bins[Math.floor(at / width) - first];
    if (!bin) return;
    bin.count++;
    bin.best -= rows.alongError[row]! / norm;
  });
  for (const bin of bins) bin.best = bin.count ? bin.best / bin.count : NaN;
  return bins;
}

/** A stack of tables, row-major: naturals, thresholds, columns. */
export interface Stack {
  values: Float32Array;
  naturals: readonly number[];
  nThresholds: number;
  nColumns: number;
}

/** One column along the thresholds, at a natural between two of the stack's, along a straight line. */
export function columnAt(stack: Stack, natural: number, column: number): Float32Array {
  const { values, naturals, nThresholds, nColumns } = stack;
  const at = (layer: number, row: number): number => values[(layer * nThresholds + row) * nColumns + column] ?? NaN;
  const after = naturals.findIndex((one) => one > natural - 1e-6);
  const upper = after < 0 ? naturals.length - 1 : after;
  const exact = Math.abs(naturals[upper]! - natural) < 1e-6 || upper === 0;
  const lower = exact ? upper : upper - 1;
  const share = exact ? 0 : (natural - naturals[lower]!) / (naturals[upper]! - naturals[lower]!);
  return Float32Array.from({ length: nThresholds }, (_, row) =>
    share === 0 ? at(lower, row) : (1 - share) * at(lower, row) + share * at(upper, row),
  );
}

/** Features from the densest to the rarest; of equals, the lower number first. */
export function byDensity(densities: Float32Array): number[] {
  return Array.from(densities.keys()).sort((a, b) => densities[b]! - densities[a]! || a - b);
}

/** The next feature in this order, in either direction, of those that are within reach; null at the end. */
export function neighbour(order: readonly number[], feature: number, step: 1 | -1, inReach: (feature: number) => boolean): number | null {
  for (let place = order.indexOf(feature) + step; place >= 0 && place < order.length; place += step) {
    if (inReach(order[place]!)) return order[place]!;
  }
  return null;
}

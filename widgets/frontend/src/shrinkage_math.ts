/** What the shrinkage explorer computes in the page, of data that Python sent once. All sums are in float64. */

import { ratio } from "./ratio";

/** The entries of a sparse matrix that are not zero, row by row. */
export interface Entries {
  readonly row: Int32Array;
  readonly feature: Int32Array;
  readonly value: Float64Array;
}

/** What is added to and multiplied with the codes of each feature that are on. */
export interface Repair {
  readonly rescale: Float64Array;
  readonly shift: Float64Array;
}

export interface TwoNumbers {
  readonly rescale: number;
  readonly shift: number;
}

export const NO_REPAIR: TwoNumbers = { rescale: 1, shift: 0 };
/** Python allows no less. */
export const LEAST_RESCALE = 0.01;

/** One trained SAE with its codes, and the truth about the same inputs. */
export interface GridPoint {
  readonly dIn: number;
  readonly dSae: number;
  readonly nFeatures: number;
  /** Inputs, row-major. */
  readonly x: Float32Array;
  /** W_dec, row-major. */
  readonly dictionary: Float32Array;
  readonly bias: Float32Array;
  readonly codes: Entries;
  readonly truth: Entries;
  /** For each entry of `codes`, the true magnitude of the matched feature; 0 where that is off, or there is none. */
  readonly trueOfCode: Float64Array;
  /** For each entry of `truth`, which entry of `codes` is its learned one; -1 where that is off. */
  readonly codeOfTruth: Int32Array;
}

/** Reads pairs of place (row * width + feature) and value. */
export function readEntries(pairs: Float32Array, width: number): Entries {
  const n = pairs.length >> 1;
  const [row, feature, value] = [new Int32Array(n), new Int32Array(n), new Float64Array(n)];
  for (let i = 0; i < n; i++) {
    const place = pairs[2 * i]!;
    row[i] = Math.floor(place / width);
    feature[i] = place % width;
    value[i] = pairs[2 * i + 1]!;
  }
  return { row, feature, value };
}

/** A grid point, with each learned entry matched to its true one. `matching`: the learned feature of each true one, or -1. */
export function gridPoint(parts: Omit<GridPoint, "trueOfCode" | "codeOfTruth" | "nFeatures">, matching: ArrayLike<number>): GridPoint {
  const { dSae, codes, truth } = parts;
  const place = new Map<number, number>();
  codes.row.forEach((row, i) => place.set(row * dSae + codes.feature[i]!, i));
  const trueOfCode = new Float64Array(codes.row.length);
  const codeOfTruth = new Int32Array(truth.row.length).fill(-1);
  truth.row.forEach((row, i) => {
    const learned = matching[truth.feature[i]!]!;
    const at = learned < 0 ? undefined : place.get(row * dSae + learned);
    if (at === undefined) return;
    codeOfTruth[i] = at;
    trueOfCode[at] = truth.value[i]!;
  });
  return { ...parts, nFeatures: matching.length, trueOfCode, codeOfTruth };
}

/** The same two numbers for every feature. */
export const uniform = ({ rescale, shift }: TwoNumbers, dSae: number): Repair => ({
  rescale: new Float64Array(dSae).fill(rescale),
  shift: new Float64Array(dSae).fill(shift),
});

/** relu(rescale * code + shift) of the codes that are on. */
export function repaired(codes: Entries, { rescale, shift }: Repair): Float64Array {
  return codes.value.map((value, i) => Math.max(0, rescale[codes.feature[i]!]! * value + shift[codes.feature[i]!]!));
}

/** The reconstruction of each input from the values of `codes`, row-major. */
export function decode({ dIn, x, dictionary, bias, codes }: GridPoint, values: Float64Array): Float64Array {
  const out = new Float64Array(x.length);
  for (let k = 0; k < out.length; k++) out[k] = bias[k % dIn]!;
  values.forEach((value, i) => {
    const [to, from] = [codes.row[i]! * dIn, codes.feature[i]! * dIn];
    for (let k = 0; k < dIn; k++) out[to + k]! += value * dictionary[from + k]!;
  });
  return out;
}

/** Means over inputs. */
export interface Sums {
  xx: number;
  rr: number;
  xr: number;
  error: number;
  xNorm: number;
  rNorm: number;
  /** E||x - E[x]||^2. */
  variance: number;
}

/** The sums from which every number of a reconstruction follows; both row-major, `dIn` wide. */
export function sumsOf(x: ArrayLike<number>, r: ArrayLike<number>, dIn: number): Sums {
  const n = x.length / dIn;
  const sums: Sums = { xx: 0, rr: 0, xr: 0, error: 0, xNorm: 0, rNorm: 0, variance: 0 };
  // Variance from distances to the first input, exactly zero where all are the same: `Spread` in saelab/quantities.py.
  const away = new Float64Array(dIn);
  let squares = 0;
  for (let row = 0; row < n; row++) {
    let [xx, rr, xr] = [0, 0, 0];
    for (let k = 0; k < dIn; k++) {
      const [a, b] = [x[row * dIn + k]!, r[row * dIn + k]!];
      xx += a * a;
      rr += b * b;
      xr += a * b;
      sums.error += (a - b) ** 2;
      away[k]! += a - x[k]!;
      squares += (a - x[k]!) ** 2;
    }
    sums.xx += xx;
    sums.rr += rr;
    sums.xr += xr;
    sums.xNorm += Math.sqrt(xx);
    sums.rNorm += Math.sqrt(rr);
  }
  for (const name of ["xx", "rr", "xr", "error", "xNorm", "rNorm"] as const) sums[name] /= n;
  sums.variance = (squares - away.reduce((sum, d) => sum + d * d, 0) / n) / n;
  return sums;
}

/** The relative reconstruction bias by the formulas of `saelab.RelativeReconstructionBias`. */
export interface Biases {
  /** argmin_g E||r / g - x||^2: gamma itself. */
  corrected: number;
  v1: number;
  projection: number;
  norm_ratio: number;
}

export function biasesOf({ xx, rr, xr, xNorm, rNorm }: Sums): Biases {
  return {
    corrected: ratio(rr, xr),
    v1: Math.sqrt(ratio(rr, 2 * xr - rr)), // NaN of a negative number
    projection: ratio(xr, xx),
    norm_ratio: ratio(rNorm, xNorm),
  };
}

export interface Detection {
  /** Mean number of features on. */
  l0: number;
  /** Share of the true entries whose learned feature is off. */
  missed: number;
  /** Share of the learned entries whose true feature is off, or that have none. */
  false: number;
  /** Share of its magnitude that a true feature's learned one recovers, mean over features: `saelab.feature_shrinkage`. */
  recovered: number;
}

export function detectionOf(point: GridPoint, values: Float64Array): Detection {
  const { truth, trueOfCode, codeOfTruth, nFeatures } = point;
  let [on, falseAlarms, missed] = [0, 0, 0];
  values.forEach((value, i) => {
    if (value <= 0) return;
    on++;
    if (trueOfCode[i] === 0) falseAlarms++;
  });
  const [learned, real] = [new Float64Array(nFeatures), new Float64Array(nFeatures)];
  codeOfTruth.forEach((at, i) => {
    const value = at < 0 ? 0 : values[at]!;
    if (value <= 0) missed++;
    learned[truth.feature[i]!]! += value;
    real[truth.feature[i]!]! += truth.value[i]!;
  });
  const shares = Array.from(learned.map((sum, i) => sum / real[i]!)).filter((share) => !Number.isNaN(share));
  return {
    l0: on / (point.x.length / point.dIn),
    missed: ratio(missed, truth.row.length),
    false: ratio(falseAlarms, on),
    recovered: ratio(shares.reduce((sum, share) => sum + share, 0), shares.length),
  };
}

export type Numbers = Biases & Detection & { fvu: number };

/** Every number of an SAE whose codes have these values. */
export function measure(point: GridPoint, values: Float64Array): Numbers {
  const sums = sumsOf(point.x, decode(point, values), point.dIn);
  return { ...biasesOf(sums), fvu: ratio(sums.error, sums.variance), ...detectionOf(point, values) };
}

/**
 * The rescale and the shift of least squared error. The error is quadratic for as long as the same codes stay on, so it is
 * solved for these until they do not change. No repair where there are too few codes to tell a factor from a shift.
 */
export function bestTwoNumbers(point: GridPoint): TwoNumbers {
  const { dIn, x, bias, codes } = point;
  let best = NO_REPAIR;
  let on = codes.value.map(() => 1);
  const biasFree = { ...point, bias: bias.map(() => 0) };
  for (let round = 0; round < 20; round++) {
    const factor = decode(biasFree, codes.value.map((value, i) => value * on[i]!));
    const summand = decode(biasFree, on);
    let [ff, fs, ss, fx, sx] = [0, 0, 0, 0, 0];
    for (let k = 0; k < x.length; k++) {
      const [f, s, target] = [factor[k]!, summand[k]!, x[k]! - bias[k % dIn]!];
      ff += f * f;
      fs += f * s;
      ss += s * s;
      fx += f * target;
      sx += s * target;
    }
    const determinant = ff * ss - fs * fs;
    if (!(determinant > 1e-9 * ff * ss)) return best;
    let rescale = (fx * ss - sx * fs) / determinant;
    let shift = (sx * ff - fx * fs) / determinant;
    if (rescale < LEAST_RESCALE) {
      rescale = LEAST_RESCALE;
      shift = (sx - rescale * fs) / ss;
    }
    best = { rescale, shift };
    const stay = codes.value.map((value) => (rescale * value + shift > 0 ? 1 : 0));
    if (stay.every((one, i) => one === on[i])) break;
    on = stay;
  }
  return best;
}

export interface Line {
  slope: number;
  /** Where it crosses x = 0. */
  at0: number;
}

/** The line of least squares in y; NaN where the points do not tell one. */
export function leastSquares(xs: ArrayLike<number>, ys: ArrayLike<number>): Line {
  const n = xs.length;
  const mean = (values: ArrayLike<number>): number => Array.from(values).reduce((sum, value) => sum + value, 0) / n;
  const [meanX, meanY] = [mean(xs), mean(ys)];
  let [xx, xy] = [0, 0];
  for (let i = 0; i < n; i++) {
    xx += (xs[i]! - meanX) ** 2;
    xy += (xs[i]! - meanX) * (ys[i]! - meanY);
  }
  const slope = xx > 0 ? xy / xx : NaN;
  return { slope, at0: meanY - slope * meanX };
}

/** The points of the picture of true against learned magnitudes. */
export interface Magnitudes {
  /** True and learned, where both are on. */
  found: { readonly x: readonly number[]; readonly y: readonly number[] };
  /** True magnitudes whose learned feature is off. */
  missed: readonly number[];
  /** Codes whose true feature is off, or that have none. */
  falseAlarms: readonly number[];
  /** Through what was found. */
  line: Line;
}

export function magnitudesOf({ truth, trueOfCode, codeOfTruth }: GridPoint, values: Float64Array): Magnitudes {
  const [x, y, missed, falseAlarms]: number[][] = [[], [], [], []];
  codeOfTruth.forEach((at, i) => {
    const value = at < 0 ? 0 : values[at]!;
    if (value > 0) {
      x!.push(truth.value[i]!);
      y!.push(value);
    } else missed!.push(truth.value[i]!);
  });
  values.forEach((value, i) => {
    if (value > 0 && trueOfCode[i] === 0) falseAlarms!.push(value);
  });
  return { found: { x: x!, y: y! }, missed: missed!, falseAlarms: falseAlarms!, line: leastSquares(x!, y!) };
}

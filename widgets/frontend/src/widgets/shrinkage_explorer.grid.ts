import { decodeFloat32 } from "../buffers";
import { nearestIndex } from "../knob_scale";
import {
  bestTwoNumbers,
  type GridPoint,
  gridPoint,
  measure,
  NO_REPAIR,
  type Numbers,
  readEntries,
  type Repair,
  repaired,
  type TwoNumbers,
  uniform,
} from "../shrinkage_math";

export type RepairKind = "by_hand" | "best_two" | "each_feature";

export interface Shape {
  n_inputs: number;
  n_features: number;
  d_in: number;
  d_sae: number;
  l1_coefficients: readonly number[];
  noises: readonly number[];
  /** Up to where the entries of each level and of each grid point reach. */
  true_ends: readonly number[];
  code_ends: readonly number[];
}

/** The buffers as they came. */
export interface Buffers {
  inputs: unknown;
  true_codes: unknown;
  codes: unknown;
  dictionaries: unknown;
}

/** One SAE of the grid, and what is computed of it at most once. */
export interface Cell {
  readonly l1: number;
  readonly point: GridPoint;
  readonly before: Numbers;
  readonly best: TwoNumbers;
}

export interface Grid {
  /** The SAEs of the level of noise that is nearest, by rising L1. */
  level(noise: number): readonly Cell[];
  /** Which of them has this L1. */
  indexOf(l1: number): number;
  /** Each feature's own repair at a grid point, or null where none has been fitted. */
  fit(fits: Float32Array, noise: number, l1: number): Repair | null;
}

/** Reads the buffers; null while one is missing. */
export function readGrid(shape: Shape, buffers: Buffers): Grid | null {
  const { n_inputs, n_features, d_in, d_sae, l1_coefficients, noises, true_ends, code_ends } = shape;
  const inputs = decodeFloat32(buffers.inputs);
  const [truth, codes] = [decodeFloat32(buffers.true_codes), decodeFloat32(buffers.codes)];
  const dictionaries = decodeFloat32(buffers.dictionaries);
  const perPoint = d_sae * d_in + d_in + n_features;
  const nPoints = noises.length * l1_coefficients.length;
  const whole =
    inputs.length === noises.length * n_inputs * d_in &&
    truth.length === 2 * true_ends.at(-1)! &&
    codes.length === 2 * code_ends.at(-1)! &&
    dictionaries.length === nPoints * perPoint;
  if (!whole) return null;

  const between = (values: Float32Array, ends: readonly number[], at: number): Float32Array =>
    values.subarray(2 * (ends[at - 1] ?? 0), 2 * ends[at]!);

  function readCell(level: number, index: number): Cell {
    const at = level * l1_coefficients.length + index;
    const own = dictionaries.subarray(at * perPoint, (at + 1) * perPoint);
    const point = gridPoint(
      {
        dIn: d_in,
        dSae: d_sae,
        x: inputs.subarray(level * n_inputs * d_in, (level + 1) * n_inputs * d_in),
        dictionary: own.subarray(0, d_sae * d_in),
        bias: own.subarray(d_sae * d_in, d_sae * d_in + d_in),
        codes: readEntries(between(codes, code_ends, at), d_sae),
        truth: readEntries(between(truth, true_ends, level), n_features),
      },
      own.subarray(d_sae * d_in + d_in),
    );
    let best: TwoNumbers | undefined;
    return {
      l1: l1_coefficients[index]!,
      point,
      before: measure(point, point.codes.value),
      get best() {
        return (best ??= bestTwoNumbers(point));
      },
    };
  }

  const levels = new Map<number, readonly Cell[]>();
  return {
    level(noise) {
      const at = nearestIndex(noises, noise);
      const cells = levels.get(at) ?? l1_coefficients.map((_, index) => readCell(at, index));
      levels.set(at, cells);
      return cells;
    },
    indexOf: (l1) => nearestIndex(l1_coefficients, l1),
    fit(fits, noise, l1) {
      const at = nearestIndex(noises, noise) * l1_coefficients.length + nearestIndex(l1_coefficients, l1);
      const own = Float64Array.from(fits.subarray(2 * d_sae * at, 2 * d_sae * (at + 1)));
      if (own.length === 0 || Number.isNaN(own[0])) return null;
      return { rescale: own.subarray(0, d_sae), shift: own.subarray(d_sae) };
    },
  };
}

/** What a repair does to an SAE. */
export interface Repaired {
  readonly values: Float64Array;
  readonly numbers: Numbers;
}

export function repairCell(cell: Cell, repair: Repair | TwoNumbers): Repaired {
  const { point, before } = cell;
  const { rescale } = repair;
  if (typeof rescale === "number") {
    const numbers = repair as TwoNumbers;
    if (rescale === NO_REPAIR.rescale && numbers.shift === NO_REPAIR.shift) return { values: point.codes.value, numbers: before };
    return repairCell(cell, uniform(numbers, point.dSae));
  }
  const values = repaired(point.codes, repair as Repair);
  return { values, numbers: measure(point, values) };
}

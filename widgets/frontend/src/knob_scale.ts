import { decimalsOf, formatKnob } from "./format";
import type { KnobSpec } from "./specs";

/** Maps a knob's value to the position of a range input and back. Positions on a log scale are log10 of the value. */
export interface KnobScale {
  readonly min: number;
  readonly max: number;
  readonly step: number;
  toPosition(value: number): number;
  toValue(position: number): number;
  format(value: number): string;
}

const clamp = (value: number, min: number, max: number): number => Math.min(max, Math.max(min, value));

export function knobScale(knob: KnobSpec): KnobScale {
  if (knob.values) return listScale(knob.values);
  return knob.scale === "log" ? logScale(knob) : linearScale(knob);
}

/** The place of the number in `values` that is nearest. */
export function nearestIndex(values: readonly number[], value: number): number {
  const distances = values.map((one) => Math.abs(one - value));
  return Math.max(0, distances.indexOf(Math.min(...distances)));
}

/** Positions are places in the list, at equal distances. */
function listScale(values: readonly number[]): KnobScale {
  const decimals = Math.max(...values.map(decimalsOf));
  const last = values.length - 1;
  return {
    min: 0,
    max: last,
    step: 1,
    toPosition: (value) => nearestIndex(values, value),
    toValue: (position) => values[clamp(Math.round(position), 0, last)]!,
    format: (value) => formatKnob(value, (v) => v.toFixed(decimals)),
  };
}

function linearScale({ min, max, step }: KnobSpec): KnobScale {
  const decimals = Math.max(decimalsOf(step), decimalsOf(min));
  return {
    min,
    max,
    step,
    toPosition: (value) => clamp(value, min, max),
    toValue: (position) => Number(position.toFixed(decimals)),
    format: (value) => formatKnob(value, (v) => v.toFixed(decimals)),
  };
}

/** Positions have at most nine decimals, so that the range input, which counts in decimals, reaches its last one. */
const nineDecimals = (position: number): number => Number(position.toFixed(9));

function logScale(knob: KnobSpec): KnobScale {
  const min = nineDecimals(Math.log10(knob.min));
  const span = Math.log10(knob.max) - min;
  // A range input stops at the last whole step below its maximum: fit the steps to the range so that this is the maximum.
  const count = Math.max(1, Math.round(span / knob.step));
  const step = nineDecimals(span / count);
  const max = nineDecimals(min + count * step);
  return {
    min,
    max,
    step,
    toPosition: (value) => (value > 0 ? clamp(Math.log10(value), min, max) : min),
    toValue: (position) => {
      if (position <= min + step / 2) return knob.min;
      if (position >= max - step / 2) return knob.max;
      return Number((10 ** position).toPrecision(3));
    },
    format: (value) => formatKnob(value, (v) => (Math.abs(v) >= 100 ? v.toFixed(0) : v.toPrecision(3))),
  };
}

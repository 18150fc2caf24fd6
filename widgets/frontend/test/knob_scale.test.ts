import assert from "node:assert/strict";
import { test } from "node:test";
import { knobScale } from "../src/knob_scale";
import type { KnobSpec } from "../src/specs";

const knob = (changes: Partial<KnobSpec>): KnobSpec => ({
  name: "k", label: "K", symbol: "k", unit: "", help: "", min: 0, max: 1, step: 0.05, scale: "linear", default: 0, paper: null,
  ...changes,
});

test("a log knob reaches both its ends exactly, whatever its range", () => {
  for (const [min, max, step] of [[0.1, 100, 0.05], [0.3, 50, 0.05], [0.007, 9, 0.1], [1e-5, 3, 0.03]] as const) {
    const scale = knobScale(knob({ min, max, step, scale: "log" }));
    assert.equal(scale.toValue(scale.min), min);
    assert.equal(scale.toValue(scale.max), max);
    // Whole steps in the browser's decimal arithmetic, which nine decimals make exact.
    const steps = (scale.max * 1e9 - scale.min * 1e9) / (scale.step * 1e9);
    assert.ok(Math.abs(steps - Math.round(steps)) < 1e-6, `${steps} steps`);
  }
});

test("the middle of a log knob is the geometric mean", () => {
  const scale = knobScale(knob({ min: 0.1, max: 10, step: 0.05, scale: "log" }));
  assert.equal(scale.toValue((scale.min + scale.max) / 2), 1);
  assert.equal(scale.toPosition(1), 0);
});

test("a value outside the range has a position at the nearer end and its true number", () => {
  const log = knobScale(knob({ min: 0.1, max: 10, step: 0.05, scale: "log" }));
  assert.equal(log.toPosition(0), log.min);
  assert.equal(log.toPosition(-1), log.min);
  assert.equal(log.toPosition(1000), log.max);
  assert.deepEqual([0, 1000, 2, 0.35, 12.34].map(log.format), ["0.00", "1000", "2.00", "0.350", "12.34"]);
  const linear = knobScale(knob({}));
  assert.equal(linear.toPosition(7), 1);
  assert.deepEqual([7, 0.3, 0.123, -0.5].map(linear.format), ["7.00", "0.30", "0.123", "−0.50"]);
});

test("a linear position is cleared of binary noise", () => {
  assert.equal(knobScale(knob({ step: 0.1 })).toValue(0.1 + 0.2), 0.3);
});

test("a knob of a few values has a position for each, and the nearest for what lies between", () => {
  const scale = knobScale(knob({ values: [0.25, 0.6, 1, 8] }));
  assert.deepEqual([scale.min, scale.max, scale.step], [0, 3, 1]);
  assert.deepEqual([0, 1, 2, 3].map(scale.toValue), [0.25, 0.6, 1, 8]);
  assert.deepEqual([0.25, 0.7, 8, 100, -1].map(scale.toPosition), [0, 1, 3, 3, 0]);
  assert.deepEqual([0.25, 0.6, 8].map(scale.format), ["0.25", "0.60", "8.00"]);
  assert.equal(knobScale(knob({ values: [3] })).toValue(0), 3);
});

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  bestTwoNumbers,
  biasesOf,
  decode,
  detectionOf,
  type GridPoint,
  gridPoint,
  leastSquares,
  magnitudesOf,
  measure,
  readEntries,
  repaired,
  sumsOf,
  uniform,
} from "../src/shrinkage_math";

const close = (actual: number, expected: number, tolerance = 1e-12): void =>
  assert.ok(Math.abs(actual - expected) <= tolerance, `${actual} is not ${expected}`);

/**
 * Three inputs of width 2 and three features: along the first axis, along the second, and a spare one. Each learned code is
 * half the true magnitude, less 0.5; input 1's second feature is missed, and the spare feature is on for input 2.
 */
function small(): GridPoint {
  return gridPoint(
    {
      dIn: 2,
      dSae: 3,
      x: Float32Array.of(4, 2, 2, 1, 0, 3),
      dictionary: Float32Array.of(1, 0, 0, 1, 1, 0),
      bias: Float32Array.of(0, 0),
      codes: readEntries(Float32Array.of(0, 1.5, 1, 0.5, 3, 0.5, 7, 1, 8, 0.25), 3),
      truth: readEntries(Float32Array.of(0, 4, 1, 2, 2, 2, 3, 1, 5, 3), 2),
    },
    [0, 1],
  );
}

test("for x = 1 and r = 1/2 gamma is 1/2, and version 1 of the paper says 1/sqrt(3)", () => {
  const biases = biasesOf(sumsOf([1], [0.5], 1));
  close(biases.corrected, 0.5);
  close(biases.v1, 1 / Math.sqrt(3));
  close(biases.projection, 0.5);
  close(biases.norm_ratio, 0.5);
});

test("an unbiased projection onto half the dimensions has gamma 1 and another norm", () => {
  const biases = biasesOf(sumsOf([1, 1, 1, -1], [1, 0, 1, 0], 2));
  close(biases.corrected, 1);
  close(biases.v1, 1);
  close(biases.projection, 0.5);
  close(biases.norm_ratio, Math.SQRT1_2);
});

test("a formula without a value is NaN", () => {
  assert.deepEqual(biasesOf(sumsOf([1], [0], 1)), { corrected: NaN, v1: NaN, projection: 0, norm_ratio: 0 });
  assert.ok(Number.isNaN(biasesOf(sumsOf([1], [3], 1)).v1)); // 2 E[x r] - E r^2 < 0
});

test("FVU is measured against the mean of the inputs", () => {
  const { error, variance } = sumsOf([1, 3], [2, 2], 1);
  close(error, 1);
  close(variance, 1);
});

test("a variance keeps its digits however far the mean is, and that of equal inputs is exactly zero", () => {
  close(sumsOf([1e9 + 1, 1e9 + 3, 1e9 + 5], [0, 0, 0], 1).variance, 8 / 3);
  const equal = sumsOf([0.1, 7.7, 0.1, 7.7, 0.1, 7.7], [0, 0, 0, 0, 0, 0], 2);
  assert.equal(equal.variance, 0);
});

test("entries are read from place and value", () => {
  const { row, feature, value } = readEntries(Float32Array.of(0, 1, 5, 2, 11, 3), 4);
  assert.deepEqual([[...row], [...feature], [...value]], [[0, 1, 2], [0, 1, 3], [1, 2, 3]]);
});

test("a repair touches only codes that are on, each by its feature's numbers, and never goes below 0", () => {
  const codes = readEntries(Float32Array.of(0, 1, 4, 1, 5, 0.1), 3);
  const repair = { rescale: Float64Array.of(2, 3, 1), shift: Float64Array.of(0, 0.5, -1) };
  assert.deepEqual([...repaired(codes, repair)], [2, 3.5, 0]);
});

test("a reconstruction is the bias and each code along its direction", () => {
  const point = { ...small(), bias: Float32Array.of(10, 20) };
  assert.deepEqual([...decode(point, point.codes.value)], [11.5, 20.5, 10.5, 20, 10.25, 21]);
});

test("what is missed, what is false, and what share of a magnitude is recovered", () => {
  const point = small();
  const detection = detectionOf(point, point.codes.value);
  close(detection.l0, 5 / 3);
  close(detection.missed, 1 / 5);
  close(detection.false, 1 / 5);
  close(detection.recovered, ((1.5 + 0.5) / 6 + (0.5 + 1) / 6) / 2);
});

test("rescaling and a positive shift change neither misses nor false alarms; clipping does", () => {
  const point = small();
  const before = detectionOf(point, point.codes.value);
  const raised = detectionOf(point, repaired(point.codes, uniform({ rescale: 2, shift: 1 }, 3)));
  assert.deepEqual([raised.missed, raised.false, raised.l0], [before.missed, before.false, before.l0]);
  const clipped = detectionOf(point, repaired(point.codes, uniform({ rescale: 1, shift: -0.3 }, 3)));
  assert.deepEqual([clipped.false, clipped.missed], [0, 1 / 5]);
});

test("a feature that is never on and one that has no learned feature are dealt with", () => {
  const { dIn, dSae, x, dictionary, bias, codes, truth } = small();
  const point = gridPoint({ dIn, dSae, x, dictionary, bias, codes, truth }, [0, -1, 2]);
  const detection = detectionOf(point, codes.value);
  close(detection.missed, 3 / 5);
  close(detection.recovered, (2 / 6 + 0) / 2); // the third is never on: not counted
});

test("the picture has a point for each pair, and the line through them", () => {
  const point = small();
  const { found, missed, falseAlarms, line } = magnitudesOf(point, point.codes.value);
  assert.deepEqual(found, { x: [4, 2, 2, 3], y: [1.5, 0.5, 0.5, 1] });
  assert.deepEqual([missed, falseAlarms], [[1], [0.25]]);
  close(line.slope, 0.5);
  close(line.at0, -0.5);
});

test("a line needs two points", () => {
  assert.ok(Number.isNaN(leastSquares([1], [1]).slope));
  assert.ok(Number.isNaN(leastSquares([], []).slope));
});

test("the best two numbers undo a rescale and a shift exactly, and then gamma is 1", () => {
  const { dIn, dSae, dictionary, bias } = small();
  const codes = readEntries(Float32Array.of(0, 1.5, 1, 0.5, 3, 0.5, 7, 1), 3);
  const x = Float32Array.of(4, 2, 2, 0, 0, 3);
  const truth = readEntries(Float32Array.of(0, 4, 1, 2, 2, 2, 5, 3), 2);
  const point = gridPoint({ dIn, dSae, x, dictionary, bias, codes, truth }, [0, 1]);
  const { rescale, shift } = bestTwoNumbers(point);
  close(rescale, 2);
  close(shift, 1);
  const numbers = measure(point, repaired(codes, uniform({ rescale, shift }, 3)));
  close(numbers.fvu, 0);
  close(numbers.corrected, 1);
  close(numbers.recovered, 1);
});

test("where a negative shift switches codes off, the best two numbers are the best for those that stay", () => {
  const point = gridPoint(
    {
      dIn: 1,
      dSae: 1,
      x: Float32Array.of(0, 0, 0, 3, 5),
      dictionary: Float32Array.of(1),
      bias: Float32Array.of(0),
      codes: readEntries(Float32Array.of(0, 0.1, 1, 0.2, 2, 0.3, 3, 4, 4, 6), 1),
      truth: readEntries(Float32Array.of(3, 3, 4, 5), 1),
    },
    [0],
  );
  const { rescale, shift } = bestTwoNumbers(point);
  close(rescale, 1);
  close(shift, -1);
});

test("without codes that tell a factor from a shift there is no repair", () => {
  const { dIn, dSae, x, dictionary, bias, truth } = small();
  for (const pairs of [[], [0, 1.5], [0, 1, 1, 1, 3, 1]]) {
    const codes = readEntries(Float32Array.from(pairs), 3);
    const point = gridPoint({ dIn, dSae, x, dictionary, bias, codes, truth }, [0, 1]);
    assert.deepEqual(bestTwoNumbers(point), { rescale: 1, shift: 0 });
    assert.ok(Number.isFinite(measure(point, codes.value).fvu));
  }
});

test("a rescale that would turn magnitudes round stays above 0", () => {
  const { dIn, dSae, dictionary, bias, truth } = small();
  const codes = readEntries(Float32Array.of(0, 1, 3, 2), 3);
  const point = gridPoint({ dIn, dSae, x: Float32Array.of(3, 0, 1, 0, 0, 0), dictionary, bias, codes, truth }, [0, 1]);
  const { rescale, shift } = bestTwoNumbers(point);
  close(rescale, 0.01);
  close(shift, 2 - 0.015);
});

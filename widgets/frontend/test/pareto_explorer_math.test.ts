import assert from "node:assert/strict";
import { test } from "node:test";
import { calmDomain } from "../src/chart_scale";
import { groupRows, meansAlong, nearestRow, placeAfterKey, roundLimits, rowsAlong } from "../src/pareto_explorer_math";

const LINEAR = { x: "linear", y: "linear" } as const;

test("rows are in order of x, then of y, then as they came", () => {
  assert.deepEqual(rowsAlong([3, 1, 1, 1], [0, 5, 4, 5], LINEAR, () => true), [2, 1, 3, 0]);
});

test("a row without a number on either axis, or that is not included, is left out", () => {
  assert.deepEqual(rowsAlong([NaN, 1, 2, 3, Infinity], [1, NaN, 2, 3, 1], LINEAR, (row) => row !== 3), [2]);
});

test("a log axis has no place for zero or less", () => {
  assert.deepEqual(rowsAlong([0, -1, 2], [1, 1, 1], { x: "log", y: "linear" }, () => true), [2]);
  assert.deepEqual(rowsAlong([1, 1, 1], [0, -1, 2], { x: "linear", y: "log" }, () => true), [2]);
});

test("rows of one line stay together, in their order", () => {
  const groups = groupRows([4, 1, 3, 0], (row) => row % 2);
  assert.deepEqual([...groups], [[0, [4, 0]], [1, [1, 3]]]);
});

test("a line goes through the mean of each point, in order of x", () => {
  const [x, y] = [[8, 1, 4, 3], [1, 5, 3, 7]];
  assert.deepEqual(meansAlong([0, 1, 2, 3], x, y, LINEAR, (row) => row % 2), [[2, 6], [6, 2]]);
  assert.deepEqual(meansAlong([2, 3], x, y, LINEAR, (row) => row), [[3, 7], [4, 3]]);
});

test("a point of which one row has no number is left out of the line", () => {
  assert.deepEqual(meansAlong([0, 1, 2, 3], [1, 3, 5, 7], [NaN, 1, 2, 4], LINEAR, (row) => row >> 1), [[6, 3]]);
  assert.deepEqual(meansAlong([], [], [], LINEAR, (row) => row), []);
});

test("limits of a log axis leave room, and waste less than powers of ten", () => {
  assert.deepEqual(roundLimits([5, 86], "log"), [4, 100]);
  assert.deepEqual(roundLimits([1, 10], "log"), [0.8, 15]);
  assert.deepEqual(roundLimits([0.02, 900], "log"), [0.015, 1000]);
});

test("every extent lies within its limits, and one number gets room on both sides", () => {
  for (const [lo, hi] of [[0.003, 0.004], [0.86, 1], [7, 7], [123, 98_765], [1e-8, 1e9]] as const) {
    for (const kind of ["linear", "log"] as const) {
      const [from, to] = roundLimits([lo, hi], kind);
      assert.ok(from < lo && hi < to, `${kind}: ${from} < ${lo}, ${hi} < ${to}`);
    }
  }
  assert.deepEqual(roundLimits([0, 0], "linear")[0], 0);
  assert.ok(roundLimits([-2, -1], "linear")[0] < -2);
});

test("axes stay while the marks that are left fill them well", () => {
  const before = calmDomain(null, [5, 90], [null, null], "log", roundLimits);
  assert.deepEqual(before, [4, 100]);
  assert.equal(calmDomain(before, [6, 60], [null, null], "log", roundLimits), before);
  assert.deepEqual(calmDomain(before, [20, 40], [null, null], "log", roundLimits), [15, 50]);
});

const SPOTS = [
  { row: 7, x: 10, y: 10 },
  { row: 2, x: 20, y: 10 },
  { row: 5, x: 20, y: 10.2 },
];

test("the nearest mark is found, and none beyond reach", () => {
  assert.equal(nearestRow(SPOTS, 13, 10, 16, -1), 7);
  assert.equal(nearestRow(SPOTS, 10, 27, 16, -1), -1);
  assert.equal(nearestRow([], 0, 0, 16, -1), -1);
});

test("marks that lie on one another take turns", () => {
  assert.equal(nearestRow(SPOTS, 20, 9, 16, -1), 2);
  assert.equal(nearestRow(SPOTS, 20, 9, 16, 2), 5);
  assert.equal(nearestRow(SPOTS, 20, 9, 16, 5), 2);
  assert.equal(nearestRow(SPOTS, 10, 10, 16, 7), 7);
});

test("keys lead to the next mark, to the ends, and no further", () => {
  const from = (at: number) => (key: string) => placeAfterKey(key, at, 4);
  assert.deepEqual(["ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "Home", "End", " ", "Enter"].map(from(2)), [3, 3, 1, 1, 0, 3, 2, 2]);
  assert.deepEqual(["ArrowLeft", "ArrowUp"].map(from(0)), [0, 0]);
  assert.deepEqual(["ArrowRight", "ArrowDown"].map(from(3)), [3, 3]);
  assert.equal(from(2)("a"), null);
});

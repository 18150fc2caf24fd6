/** Cases whose answers are Python's: tests/saelab_widgets/test_shared_cases.py writes them and holds them to the library. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isBlank, isFound, listed, type Reading, searchable } from "../src/feature_browser_math";
import { featureNumbers, type Look, rowsOf as gateRowsOf, wholeSae } from "../src/gate_math";
import { nearestIndex } from "../src/knob_scale";
import { meansAlong, rowsAlong } from "../src/pareto_explorer_math";
import { numbersAt, probeIndex, rowsOf as rowsOfBits } from "../src/probe_math";
import { bestTwoNumbers, gridPoint, measure, readEntries, repaired, uniform } from "../src/shrinkage_math";
import cases from "./shared_cases.json";

/** JSON has no NaN: there it is null, and infinity is text. */
const number = (value: number | string | null): number => (value === null ? NaN : Number(value));

function close(actual: number, expected: number | null, what: string): void {
  const wanted = number(expected);
  if (Number.isNaN(wanted)) assert.ok(Number.isNaN(actual), `${what}: ${actual} is not NaN`);
  // Python's codes are float32.
  else assert.ok(Math.abs(actual - wanted) <= 2e-5 * Math.max(1, Math.abs(wanted)), `${what}: ${actual} is not ${wanted}`);
}

test("a feature's own threshold gives the L0, gamma and FVU that Python measures on the SAE it is applied to", () => {
  cases.gate.forEach((one, index) => {
    const rows = gateRowsOf(Float32Array.from(one.rows), one.rows.length / 3);
    const look: Look = one.look;
    const whole = wholeSae(rows, look, one.own);
    for (const name of ["l0", "gamma", "fvu"] as const) close(whole[name], one[name], `case ${index}, ${name}`);
    const feature = featureNumbers(rows.piGate, one.own, look.natural, look);
    for (const name of ["density", "mean", "largest"] as const) close(feature[name], one[name], `case ${index}, ${name}`);
  });
});

test("the four formulas, FVU and detection are Python's, before and after every repair", () => {
  cases.shrinkage.forEach((one, index) => {
    const { dIn, dSae, matching } = one;
    const point = gridPoint(
      {
        dIn,
        dSae,
        x: Float32Array.from(one.x),
        dictionary: Float32Array.from(one.dictionary),
        bias: Float32Array.from(one.bias),
        codes: readEntries(Float32Array.from(one.codes), dSae),
        truth: readEntries(Float32Array.from(one.truth), matching.length),
      },
      matching,
    );
    const best = bestTwoNumbers(point);
    close(best.rescale, one.best.rescale, `case ${index}, best rescale`);
    close(best.shift, one.best.shift, `case ${index}, best shift`);
    for (const { rescale, shift, numbers } of one.repairs) {
      const repair =
        Array.isArray(rescale) && Array.isArray(shift)
          ? { rescale: Float64Array.from(rescale), shift: Float64Array.from(shift) }
          : uniform({ rescale: Number(rescale), shift: Number(shift) }, dSae);
      const measured = measure(point, repaired(point.codes, repair));
      assert.deepEqual(Object.keys(measured).sort(), Object.keys(numbers).sort());
      for (const [name, value] of Object.entries(numbers)) {
        close(measured[name as keyof typeof measured], value, `case ${index}, ${rescale} and ${shift}: ${name}`);
      }
    }
  });
});

test("a value off the grid is taken as the number that Python takes", () => {
  for (const { grid, value, nearest } of cases.nearest) assert.equal(grid[nearestIndex(grid, value)], nearest);
});

test("a probe's numbers and bits lie where Python has put them", () => {
  const { shape, columns, numbers, picked, masks } = cases.probe;
  const [, l1s, parts, representations] = shape as [number, number, number, number];
  const axes = { l1s, parts, representations, columns, rows: 0 };
  for (const { representation, column, value, ...place } of picked) {
    assert.equal(numbersAt(Float32Array.from(numbers), probeIndex(place, representation, axes), columns)(column), value);
  }
  for (const { n_rows, rows, bytes } of masks) assert.deepEqual(rowsOfBits(Uint8Array.from(bytes), 0, n_rows), rows);
});

test("a line goes through the marks of a sweep as in Python's picture", () => {
  for (const { x, y, rows, points, lines } of cases.pareto) {
    const kinds = { x: "linear", y: "linear" } as const;
    assert.deepEqual(rowsAlong(x.map(number), y.map(number), kinds, () => true), rows);
    for (const { rows: some, corners } of lines)
      assert.deepEqual(meansAlong(some, x.map(number), y.map(number), kinds, (row) => points[row]!), corners);
  }
});

test("features are found and listed as in Python", () => {
  const { texts, readings, found, columns, orders } = cases.search;
  for (const one of texts) assert.equal(searchable(one.text), one.searchable);
  const known = readings.map(
    ({ contexts, raised }) =>
      ({ contexts: contexts.map((tokens) => ({ tokens })), raised: raised.map((token) => ({ token })) }) as unknown as Reading,
  );
  for (const [search, features] of Object.entries(found)) {
    const has = known.flatMap((reading, feature) => (!isBlank(search) && isFound(reading, search) ? [feature] : []));
    assert.deepEqual(has, features, `searched for “${search}”`);
  }
  const column = (name: string): Float32Array => Float32Array.from(columns[name as keyof typeof columns]);
  for (const { label, column: by, sign, show_dead, features } of orders) {
    assert.deepEqual(listed({ value: "", label, column: by, sign }, column, show_dead, null), features, label);
  }
});

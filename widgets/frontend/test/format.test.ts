import assert from "node:assert/strict";
import { test } from "node:test";
import { decimalsOf, formatCount, formatFixed, formatRate, formatShort, formatSigned } from "../src/format";

test("numbers keep their decimals", () => {
  assert.equal(formatFixed(0.5, 3), "0.500");
  assert.equal(formatFixed(-12.25, 1), "−12.3");
  assert.equal(formatFixed(-0.0001, 2), "0.00");
  assert.equal(formatFixed(NaN, 2), "–");
  assert.equal(formatCount(1234567), "1,234,567");
  assert.equal(formatRate(3.21), "3.2");
  assert.equal(formatRate(412.4), "412");
});

test("a signed number has its sign, and zero has none", () => {
  assert.deepEqual([1.5, -1.5, 0, 0.001, NaN].map((value) => formatSigned(value, 2)), ["+1.50", "−1.50", "0.00", "0.00", "–"]);
});

test("axis labels are short", () => {
  assert.deepEqual([0, 500, 1500, 20_000, 2e6, -0.5, 0.001].map(formatShort), ["0", "500", "1.5k", "20k", "2M", "−0.5", "0.001"]);
});

test("a step says how many decimals it needs", () => {
  assert.deepEqual([1, 0.1, 0.05, 2.5, 1e-7].map(decimalsOf), [0, 1, 2, 1, 7]);
});

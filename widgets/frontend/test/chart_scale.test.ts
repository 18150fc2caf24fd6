import assert from "node:assert/strict";
import { test } from "node:test";
import { axisTicks, calmDomain, extentOf, stepDomain } from "../src/chart_scale";

const FREE = [null, null] as const;

test("the extent leaves out what an axis can't show", () => {
  assert.deepEqual(extentOf([[3, NaN, Infinity], [-1]], "linear"), [-1, 3]);
  assert.deepEqual(extentOf([[3, 0, -1, 0.5]], "log"), [0.5, 3]);
  assert.equal(extentOf([[NaN]], "linear"), null);
});

test("an axis stays while the data fit, grows when they don't, and shrinks when they look flat", () => {
  const first = calmDomain(null, [2, 9], FREE, "linear");
  assert.ok(first[0] <= 2 && first[1] >= 9);
  assert.equal(calmDomain(first, [3, 8], FREE, "linear"), first);
  assert.ok(calmDomain(first, [2, 12], FREE, "linear")[1] >= 12);
  assert.ok(calmDomain(first, [4, 4.5], FREE, "linear")[1] < 6);
});

test("limits are finite and apart for constant, empty and contradictory data", () => {
  for (const kind of ["linear", "log"] as const) {
    for (const extent of [null, [0.7, 0.7], [1e-9, 1e9]] as const) {
      for (const fixed of [FREE, [0, null], [null, 1], [0, 1], [5, null], [null, -3]] as const) {
        const [lo, hi] = calmDomain(null, extent && [...extent], fixed, kind);
        assert.ok(Number.isFinite(lo) && Number.isFinite(hi) && lo < hi, `${kind} ${extent} ${fixed}: ${lo} ${hi}`);
        if (kind === "log") assert.ok(lo > 0);
      }
    }
  }
  assert.deepEqual(calmDomain(null, [0, 0], FREE, "linear")[0], 0);
});

test("fixed limits hold", () => {
  assert.deepEqual(calmDomain(null, [0.3, 4], [0, 1], "linear"), [0, 1]);
  assert.equal(calmDomain(null, [3, 7], [0, null], "linear")[0], 0);
});

test("the axis of steps grows in leaps and ends with the training", () => {
  assert.deepEqual(stepDomain(0, 1001, 20_000), [0, 1500]);
  assert.deepEqual(stepDomain(0, 1400, 20_000), [0, 1500]);
  assert.deepEqual(stepDomain(0, 1400, 1450), [0, 1450]);
  assert.deepEqual(stepDomain(9000, 9900, 0), [9000, 10_000]);
  assert.deepEqual(stepDomain(NaN, NaN, 500), [0, 500]);
  assert.deepEqual(stepDomain(0, 0, 0), [0, 1]);
});

test("log ticks are powers of ten, or 1, 2 and 5 where these are few", () => {
  assert.deepEqual(axisTicks([0.1, 1], "log", 3), [0.1, 0.2, 0.5, 1]);
  assert.deepEqual(axisTicks([1, 100], "log", 3), [1, 10, 100]);
  assert.deepEqual(axisTicks([1e-6, 1e2], "log", 3), [1e-6, 1e-3, 1]);
});

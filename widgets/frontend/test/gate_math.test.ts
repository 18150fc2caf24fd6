import assert from "node:assert/strict";
import { test } from "node:test";
import { binsOf, byDensity, codeAt, columnAt, featureNumbers, type Look, neighbour, rowsOf, wholeSae } from "../src/gate_math";

const LINE = { slope: 2, shift: 0.5 };

/** Numbers in [-2, 2), the same every time. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    return (4 * state) / 2 ** 31 - 2;
  };
}

test("a code is zero up to the threshold and lies on the line above it, at or above zero", () => {
  assert.equal(codeAt(0.5, 0.5, 0, LINE), 0);
  assert.equal(codeAt(0.75, 0.5, 0, LINE), 2);
  assert.equal(codeAt(0.75, 0.5, 1, LINE), 1.5);
  assert.equal(codeAt(-0.75, -1, 0, LINE), 0);
  // A pre-activation that is the threshold in float32 does not exceed it.
  assert.equal(codeAt(Math.fround(0.35), 0.35, 0, LINE), 0);
});

test("density, mean and largest code are of the tokens for which the feature is on", () => {
  const numbers = featureNumbers(Float32Array.of(-1, 0, 0.5, 1), 0.25, 0, LINE);
  assert.deepEqual(numbers, { density: 0.5, mean: 2, largest: 2.5 });
  assert.deepEqual(featureNumbers(Float32Array.of(0, 0), 1, 0, LINE), { density: 0, mean: NaN, largest: 0 });
});

test("the whole SAE's numbers with an own threshold are those computed from the vectors themselves", () => {
  const next = random(3);
  const [n, d] = [50, 4];
  const vector = (): number[] => Array.from({ length: d }, next);
  const dot = (a: number[], b: number[]): number => a.reduce((sum, v, i) => sum + v * b[i]!, 0);
  const minus = (a: number[], b: number[]): number[] => a.map((v, i) => v - b[i]!);
  const direction = vector();
  const tokens = Array.from({ length: n }, () => ({ piGate: Math.fround(next()), x: vector(), rest: vector() }));
  const mean = (of: (token: (typeof tokens)[number]) => number): number => tokens.reduce((sum, t) => sum + of(t), 0) / n;
  const look: Look = {
    feature: 0,
    gate_threshold: 0,
    natural: 0.3,
    ...LINE,
    norm: dot(direction, direction),
    l0: 7,
    rr: mean(({ rest }) => dot(rest, rest)),
    xr: mean(({ x, rest }) => dot(x, rest)),
    error: mean(({ x, rest }) => dot(minus(rest, x), minus(rest, x))),
    variance: 3,
  };
  const values = tokens.flatMap(({ piGate, x, rest }) => [piGate, dot(x, direction), dot(minus(rest, x), direction)]);
  const rows = rowsOf(Float32Array.from(values), n);
  for (const own of [-3, -0.4, 0.2, 1.1, 5]) {
    const reconstructions = tokens.map(({ piGate, rest }) => rest.map((v, i) => v + codeAt(piGate, own, 0.3, LINE) * direction[i]!));
    const rr = reconstructions.reduce((sum, r) => sum + dot(r, r), 0) / n;
    const xr = reconstructions.reduce((sum, r, i) => sum + dot(r, tokens[i]!.x), 0) / n;
    const found = wholeSae(rows, look, own);
    const error = reconstructions.reduce((sum, r, i) => sum + dot(minus(r, tokens[i]!.x), minus(r, tokens[i]!.x)), 0) / n;
    assert.ok(Math.abs(found.gamma - rr / xr) < 1e-5 * Math.abs(rr / xr));
    assert.ok(Math.abs(found.fvu - error / 3) < 1e-5);
    assert.ok(Math.abs(found.l0 - 7 - mean(({ piGate }) => Number(codeAt(piGate, own, 0.3, LINE) > 0))) < 1e-12);
  }
});

test("FVU keeps its digits where the mean is far from zero, and what is undefined is NaN", () => {
  const look: Look = { feature: 0, gate_threshold: 0, natural: 0, ...LINE, norm: 1, l0: 0, rr: 1e16, xr: 1e16, error: 0.5, variance: 2 };
  const rows = { piGate: Float32Array.of(0.25, -1), alongX: Float32Array.of(1e8, 1e8), alongError: Float32Array.of(-0.25, -0.25) };
  assert.equal(wholeSae(rows, look, 0).fvu, 0.375); // the code is 1: (0.5 + (2 * -0.25 + 1) / 2) / 2
  assert.deepEqual(wholeSae(rows, { ...look, xr: 0, variance: 0 }, 5), { l0: 0, gamma: NaN, fvu: NaN });
});

test("rows of several features are taken apart", () => {
  const rows = rowsOf(Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), 2, 1);
  assert.deepEqual([...rows.piGate, ...rows.alongX, ...rows.alongError], [7, 10, 8, 11, 9, 12]);
});

test("every token is in one bin, and bins have round edges", () => {
  const next = random(5);
  const piGate = Float32Array.from({ length: 500 }, next);
  const zeros = new Float32Array(500);
  const bins = binsOf({ piGate, alongX: zeros, alongError: zeros.map(() => -2) }, 4);
  assert.equal(bins.reduce((sum, { count }) => sum + count, 0), 500);
  assert.ok(bins.length <= 71);
  assert.ok(Math.abs(bins[0]!.to - bins[0]!.from - 0.1) < 1e-9);
  for (const { count, best } of bins) assert.ok(count ? Math.abs(best - 0.5) < 1e-6 : Number.isNaN(best));
  const same = { piGate: zeros, alongX: zeros, alongError: zeros };
  assert.deepEqual(binsOf(same, 1).map(({ count }) => count), [500]);
  assert.deepEqual(binsOf({ piGate: new Float32Array(0), alongX: zeros, alongError: zeros }, 1), []);
});

test("a column is looked up at a natural of the stack, and lies on a straight line between two", () => {
  const stack = { values: Float32Array.of(0, 1, 2, NaN, 10, 11, 12, 13), naturals: [0, 1], nThresholds: 2, nColumns: 2 };
  assert.deepEqual([...columnAt(stack, 0, 0)], [0, 2]);
  assert.deepEqual([...columnAt(stack, 1, 1)], [11, 13]);
  assert.deepEqual([...columnAt(stack, 0.25, 0)], [2.5, 4.5]);
  // What is missing on one side is missing between; on the other side it isn't.
  assert.deepEqual([...columnAt(stack, 0.5, 1)], [6, NaN]);
  assert.deepEqual([...columnAt({ ...stack, values: new Float32Array(0) }, 0, 0)], [NaN, NaN]);
});

test("features are stepped through by density, over those out of reach", () => {
  const order = byDensity(Float32Array.of(0.1, 0.5, 0.1, 0));
  assert.deepEqual(order, [1, 0, 2, 3]);
  assert.equal(neighbour(order, 0, 1, () => true), 2);
  assert.equal(neighbour(order, 1, 1, (feature) => feature === 3), 3);
  assert.equal(neighbour(order, 1, -1, () => true), null);
  assert.equal(neighbour(order, 3, 1, () => true), null);
});

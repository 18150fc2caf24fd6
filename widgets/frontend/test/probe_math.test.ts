import assert from "node:assert/strict";
import { test } from "node:test";
import { decodeBytes } from "../src/buffers";
import { type Axes, bytesFor, decodeLive, numbersAt, probeIndex, rowsOf, samePlace, without } from "../src/probe_math";

const AXES: Axes = { l1s: 2, parts: 3, representations: 3, columns: ["train", "test"], rows: 11 };

test("bits are rows, the first row in the lowest bit of the first byte", () => {
  const bits = Uint8Array.of(0xff, 0b1000_0001, 0b0000_0101);
  assert.deepEqual(rowsOf(bits, 1, 11), [0, 7, 8, 10]);
  assert.deepEqual(rowsOf(bits, 1, 9), [0, 7, 8]);
  assert.equal(bytesFor(11), 2);
  assert.equal(bytesFor(16), 2);
});

test("bits that did not arrive are no rows", () => {
  assert.deepEqual(rowsOf(new Uint8Array(0), 0, 11), []);
  assert.deepEqual(rowsOf(Uint8Array.of(255), 5, 8), []);
});

test("every probe has an index of its own, in the order in which Python lays them out", () => {
  const seen: number[] = [];
  for (let layer = 0; layer < 2; layer++)
    for (let l1 = 0; l1 < 2; l1++)
      for (let part = 0; part < 3; part++)
        for (let one = 0; one < 3; one++) seen.push(probeIndex({ layer, l1, part }, one, AXES));
  assert.deepEqual(seen, [...Array(36).keys()]);
});

test("a probe's numbers are read by name, and one that is not there is NaN", () => {
  const values = Float32Array.of(0, 0.1, 1, 1.5);
  assert.equal(numbersAt(values, 1, AXES.columns)("test"), 1.5);
  assert.equal(numbersAt(values, 1, AXES.columns)("train"), 1);
  assert.equal(numbersAt(values, 0, AXES.columns, 1)("test"), 1);
  assert.equal(numbersAt(values, 1, AXES.columns)("no such"), NaN);
  assert.equal(numbersAt(new Float32Array(0), 0, AXES.columns)("test"), NaN);
});

test("what was computed says where, at which threshold, and for codes and PCA", () => {
  const live = decodeLive(Float32Array.of(3, 1, 2, 0.5, 0.7, 0.6, 0.9, 0.8), AXES.columns)!;
  assert.deepEqual(live.place, { layer: 3, l1: 1, part: 2 });
  assert.equal(live.threshold, 0.5);
  assert.equal(live.numbers[0]("test"), Math.fround(0.6));
  assert.equal(live.numbers[1]("train"), Math.fround(0.9));
  assert.equal(decodeLive(new Float32Array(0), AXES.columns), null);
  assert.ok(samePlace(live.place, { layer: 3, l1: 1, part: 2 }));
  assert.ok(!samePlace(live.place, { layer: 3, l1: 1, part: 1 }));
});

test("the rows that are right are the tested ones without the wrong ones", () => {
  assert.deepEqual(without([1, 2, 5, 9], [2, 9]), [1, 5]);
});

test("bytes are read in each form in which a front end hands them over", () => {
  const { buffer } = Uint8Array.of(1, 2, 3, 4);
  assert.deepEqual([...decodeBytes(buffer)], [1, 2, 3, 4]);
  assert.deepEqual([...decodeBytes(new DataView(buffer, 1, 2))], [2, 3]);
  assert.deepEqual([...decodeBytes(new Uint8Array(buffer, 3))], [4]);
  assert.equal(decodeBytes(null).length, 0);
});

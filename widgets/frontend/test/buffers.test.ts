import assert from "node:assert/strict";
import { test } from "node:test";
import { decodeFloat32, lastDefined, Table } from "../src/buffers";

const numbers = Float32Array.of(1, 2.5, -3, 4);

test("each form of a buffer decodes to the same numbers", () => {
  for (const form of [numbers.buffer, new DataView(numbers.buffer), new Uint8Array(numbers.buffer), numbers]) {
    assert.deepEqual(decodeFloat32(form), numbers);
  }
});

test("a view that starts between two floats is read right", () => {
  const shifted = new Uint8Array(17);
  shifted.set(new Uint8Array(numbers.buffer), 1);
  assert.deepEqual(decodeFloat32(new DataView(shifted.buffer, 1, 16)), numbers);
});

test("a view of a part of a buffer gives that part", () => {
  assert.deepEqual(decodeFloat32(new DataView(numbers.buffer, 4, 8)), numbers.slice(1, 3));
});

test("a buffer that was dropped, or isn't whole, is no error", () => {
  for (const missing of [null, undefined, {}, ""]) assert.equal(decodeFloat32(missing).length, 0);
  assert.equal(decodeFloat32(new ArrayBuffer(6)).length, 1);
  assert.equal(decodeFloat32(new Uint8Array(7)).length, 1);
  assert.equal(decodeFloat32(new Uint8Array(new ArrayBuffer(8), 1, 6)).length, 1);
});

test("a table gives its columns, and NaN for one that it doesn't have", () => {
  const table = new Table(Float32Array.of(0, 10, 1, 20, 2), ["step", "l0"]);
  assert.equal(table.rows, 2);
  assert.deepEqual(table.column("l0"), Float32Array.of(10, 20));
  assert.deepEqual(table.column("gamma"), Float32Array.of(NaN, NaN));
  assert.equal(new Table(numbers, []).rows, 0);
});

test("the last measured number is found behind gaps", () => {
  assert.equal(lastDefined(Float32Array.of(1, 2, NaN, Infinity)), 2);
  assert.ok(Number.isNaN(lastDefined(Float32Array.of(NaN))));
});

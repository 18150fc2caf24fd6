import assert from "node:assert/strict";
import { test } from "node:test";
import {
  isBlank,
  isFound,
  listed,
  type Order,
  type Reading,
  rowAfterKey,
  rowsInView,
  searchable,
  shade,
  visible,
  visibleAlone,
} from "../src/feature_browser_math";

const order = (column: string, sign: number): Order => ({ value: "", label: "", column, sign });
const columns: Record<string, Float32Array> = {
  density: Float32Array.of(0.1, 0, 0.3, 0.1),
  probe_weight: Float32Array.of(0, 0, -1, 2),
};
const column = (name: string): Float32Array => columns[name]!;

test("a list is in its order, equals by index, without the dead unless they are asked for", () => {
  assert.deepEqual(listed(order("density", -1), column, false, null), [2, 0, 3]);
  assert.deepEqual(listed(order("density", -1), column, true, null), [2, 0, 3, 1]);
  assert.deepEqual(listed(order("probe_weight", -1), column, true, null), [3, 0, 1, 2]);
  assert.deepEqual(listed(order("probe_weight", 1), column, false, null), [2, 0, 3]);
  assert.deepEqual(listed(order("", 1), column, true, null), [0, 1, 2, 3]);
});

test("a list has only what was found", () => {
  assert.deepEqual(listed(order("density", -1), column, false, new Set([0, 1, 2])), [2, 0]);
  assert.deepEqual(listed(order("density", -1), column, true, new Set()), []);
});

const reading: Reading = {
  feature: 3,
  density: 0.1,
  max_activation: 2,
  probe_weight: null,
  contexts: [
    { text_index: 0, position: 1, tokens: ["An", " ÉT", "É", "\n\n", "<b>"], activations: [0, 1, 2, 0, 0], peak: 2 },
    { text_index: 2, position: 9, tokens: ["next", " one"], activations: [1, 0], peak: 0 },
  ],
  raised: [{ token: " Wonderful", token_id: 5, effect: 1 }],
  lowered: [{ token: " Awful", token_id: 6, effect: -1 }],
  nearest: [],
  histogram: [],
};

test("a feature is found by its contexts and by the tokens it raises, upper and lower case alike", () => {
  for (const text of ["été", " ÉTÉ", "an été <b>", "wonder", " wonderful", "NEXT ONE"]) assert.ok(isFound(reading, text), text);
});

test("a feature is not found by what it lowers, nor across two contexts, nor by a space that isn't there", () => {
  for (const text of ["awful", "<b>next", " next", "wonderful next", "b>n"]) assert.ok(!isFound(reading, text), text);
});

test("white space is one space, and alone it looks for nothing", () => {
  assert.equal(searchable("A\n\n \tb"), "a b");
  assert.deepEqual(["", " ", "\n "].map(isBlank), [true, true, true]);
  assert.ok(!isBlank(" a"));
});

test("the rows in view are those between top and bottom, and a few more", () => {
  assert.deepEqual(rowsInView(0, 100, 20, 1000, 2), [0, 7]);
  assert.deepEqual(rowsInView(410, 100, 20, 1000, 2), [18, 28]);
  assert.deepEqual(rowsInView(19_900, 100, 20, 1000, 2), [993, 1000]);
  assert.deepEqual(rowsInView(400, 100, 20, 3, 2), [3, 3]);
  assert.deepEqual(rowsInView(0, 100, 20, 0, 2), [0, 0]);
});

test("keys lead through the list and stop at its ends", () => {
  assert.deepEqual(["ArrowDown", "ArrowUp", "PageDown", "PageUp", "Home", "End"].map((key) => rowAfterKey(key, 5, 20, 10)), [
    6, 4, 15, 0, 0, 19,
  ]);
  assert.equal(rowAfterKey("ArrowDown", 19, 20, 10), 19);
  assert.equal(rowAfterKey("ArrowDown", -1, 20, 10), 0);
  assert.equal(rowAfterKey("ArrowUp", -1, 20, 10), 19);
  assert.equal(rowAfterKey("a", 5, 20, 10), null);
  assert.equal(rowAfterKey("End", -1, 0, 10), null);
});

test("what can't be seen is written out, and what can be is left alone", () => {
  assert.equal(visible(" the"), " the");
  assert.equal(visible("\n\n"), "↵↵");
  assert.equal(visible("a\tb\u0007\u202eb"), "a⇥b\\u0007\\u202eb");
  for (const text of ["👩‍🚀", "🏴\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}", "שלום", "<b>&amp;", "\ufffd", "é"]) {
    assert.equal(visible(text), text);
  }
  assert.deepEqual(["", "  ", " a", "\n"].map(visibleAlone), ["∅", "␣␣", " a", "↵"]);
});

test("a token is shaded by its share of the largest activation", () => {
  assert.deepEqual([0, 1, 4, 5].map((value) => shade(value, 4)), [0, 0.25, 1, 1]);
  assert.equal(shade(1, 0), 0);
});

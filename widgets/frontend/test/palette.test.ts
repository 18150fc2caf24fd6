import assert from "node:assert/strict";
import { test } from "node:test";
import { paletteProperties } from "../src/palette";

test("a colour and its ink become custom properties, each for both themes", () => {
  const properties = paletteProperties({
    gamma: { light: "#d55e00", dark: "#F0803C", light_ink: "#b84f00" },
    "my-own_2": { light: "#123", dark: "#abc" },
  });
  assert.deepEqual([...properties], [
    ["--saelab-gamma", "light-dark(#d55e00, #F0803C)"],
    ["--saelab-gamma-ink", "light-dark(#b84f00, #F0803C)"],
    ["--saelab-my-own_2", "light-dark(#123, #abc)"],
    ["--saelab-my-own_2-ink", "light-dark(#123, #abc)"],
  ]);
});

test("what is no hexadecimal colour does not get into a style", () => {
  for (const bad of ["red", "#12", "#12345g", "#123456; background: url(//x)", "url(#123456)", "#1234", "", 7, null, undefined]) {
    const light = bad as string;
    assert.deepEqual([...paletteProperties({ l0: { light, dark: "#000000" } })], []);
    assert.deepEqual([...paletteProperties({ l0: { light: "#000000", dark: light } })], []);
  }
  assert.deepEqual([...paletteProperties({ l0: null as never })], []);
  assert.deepEqual([...paletteProperties({ "a: b": { light: "#000000", dark: "#ffffff" } })], []);
});

test("an ink that is malformed leaves the colour itself", () => {
  const properties = paletteProperties({ l0: { light: "#000000", dark: "#ffffff", light_ink: "black" } });
  assert.deepEqual([...properties.keys()], ["--saelab-l0"]);
});

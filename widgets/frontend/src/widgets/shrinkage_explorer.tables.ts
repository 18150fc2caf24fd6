import { h, setText } from "../dom";
import { formatFixed } from "../format";
import { createKey } from "../line_chart";
import type { Numbers } from "../shrinkage_math";
import type { FormulaSpec } from "../specs";

export interface Tables {
  readonly element: HTMLElement;
  /** The numbers before and after repair; no `after`: not known here. */
  show(before: Numbers, after: Numbers | null): void;
}

type Name = keyof Numbers;

/** Where the strip of the formulas ends; what lies beyond is drawn at the end. */
const STRIP_END = 1.5;
const position = (value: number): number => Math.min(1, Math.max(0, value / STRIP_END));

const percent = (value: number): string => (Number.isFinite(value) ? `${formatFixed(100 * value, 1)} %` : formatFixed(value, 1));

const QUALITY: readonly { name: Name; label: string; help: string; format: (value: number) => string }[] = [
  { name: "fvu", label: "FVU", help: "variance left unexplained", format: (v) => formatFixed(v, 3) },
  { name: "recovered", label: "Recovered", help: "of a true magnitude", format: (v) => formatFixed(v, 3) },
  { name: "l0", label: "L0", help: "features on per input", format: (v) => formatFixed(v, 2) },
  { name: "missed", label: "Missed", help: "of the true ones", format: percent },
  { name: "false", label: "False alarms", help: "of the learned ones", format: percent },
];

const UNCHANGED = "No rescale or shift changes the last three, unless it takes a code down to 0.";

interface Pair {
  readonly cells: readonly [HTMLElement, HTMLElement];
  show(before: number, after: number): void;
}

/** The two cells of a number; they hold it for tests as it is. */
function createPair(name: Name, format: (value: number) => string): Pair {
  const cell = (when: string): HTMLElement => h("td", { class: "saelab-number", "data-number": name, "data-when": when }, "–");
  const cells = [cell("before"), cell("after")] as const;
  return {
    cells,
    show(...values) {
      cells.forEach((element, i) => {
        setText(element, format(values[i]!));
        element.dataset.value = Number.isFinite(values[i]!) ? String(values[i]) : "";
      });
    },
  };
}

const heads = (): HTMLElement[] => ["before", "after"].map((text) => h("th", { scope: "col", class: "saelab-number" }, text));

/** A dot for each of two values on an axis from 0, with 1 marked, and a bar that says how far the second is from 1. */
function createStrip(): { element: HTMLElement; show(before: number, after: number): void } {
  const [bar, before, after] = ["bar", "before", "after"].map((kind) => h("span", { class: `saelab-strip-${kind}` }));
  const element = h("div", { class: "saelab-strip", "aria-hidden": "true" }, bar!, before!, after!);
  const at = (dot: HTMLElement, value: number): void => {
    dot.hidden = !Number.isFinite(value);
    dot.style.setProperty("--at", String(position(value)));
  };
  return {
    element,
    show(was, is) {
      at(before!, was);
      at(after!, is);
      bar!.hidden = !Number.isFinite(is);
      bar!.style.setProperty("--from", String(Math.min(position(is), position(1))));
      bar!.style.setProperty("--length", String(Math.abs(position(is) - position(1))));
    },
  };
}

/** The four formulas on one axis, and what a repair changes and what it does not. */
export function createTables(formulas: readonly FormulaSpec[]): Tables {
  const pairs = new Map<Name, Pair>();
  const strips = new Map<Name, ReturnType<typeof createStrip>>();
  const pair = (name: Name, format: (value: number) => string): readonly HTMLElement[] => {
    const made = createPair(name, format);
    pairs.set(name, made);
    return made.cells;
  };

  const biasRows = formulas.map(({ name, label, formula, dash }) => {
    const strip = createStrip();
    strips.set(name, strip);
    const color = dash === "" ? "gamma" : "muted";
    const row = h(
      "tr",
      { "data-formula": name },
      h("th", { scope: "row" }, createKey(label, color, dash), h("span", { class: "saelab-help" }, formula)),
      h("td", { class: "saelab-strip-cell" }, strip.element),
      ...pair(name, (value) => formatFixed(value, 3)),
    );
    row.style.setProperty("--line", `var(--saelab-${color})`);
    row.style.setProperty("--ink", dash === "" ? "var(--saelab-gamma-ink)" : "inherit");
    return row;
  });
  const axis = h("div", { class: "saelab-strip-axis", "aria-hidden": "true" });
  for (const value of [0, 0.5, 1, 1.5]) {
    const tick = h("span", {}, String(value));
    tick.style.setProperty("--at", String(position(value)));
    axis.append(tick);
  }
  const biases = h(
    "table",
    { class: "saelab-numbers saelab-bias-table" },
    h("caption", {}, "Four formulas for γ"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "formula"), h("td", { class: "saelab-strip-cell" }, axis), ...heads())),
    h("tbody", {}, ...biasRows),
  );
  const quality = h(
    "table",
    { class: "saelab-numbers" },
    h("caption", {}, "What repair does"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "number"), ...heads())),
    h(
      "tbody",
      {},
      ...QUALITY.map(({ name, label, help, format }) => {
        const row = h("tr", {}, h("th", { scope: "row" }, label, h("span", { class: "saelab-help" }, help)), ...pair(name, format));
        row.style.setProperty("--ink", name === "fvu" ? "var(--saelab-fvu-ink)" : "inherit");
        return row;
      }),
    ),
  );
  return {
    element: h("div", { class: "saelab-charts saelab-tables" }, h("div", {}, biases), h("div", {}, quality, h("p", { class: "saelab-help" }, UNCHANGED))),
    show(before, after) {
      pairs.forEach((made, name) => made.show(before[name], after?.[name] ?? NaN));
      strips.forEach((strip, name) => strip.show(before[name], after?.[name] ?? NaN));
    },
  };
}

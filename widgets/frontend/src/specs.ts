/**
 * The data of knobs and charts, as Python sends it. `saelab_widgets/specs.py` declares the same under the same names;
 * tests/saelab_widgets/test_contract.py compares the two.
 */
import type { ScaleKind } from "./chart_scale";

/** One choice of several. */
export interface OptionSpec<Value extends string = string> {
  value: Value;
  label: string;
}

/** An architecture to choose. */
export interface ArchitectureSpec extends OptionSpec {
  /** The ablations that it has, by value. */
  ablations: readonly string[];
}

/** A slider, bound to the trait `name`. */
export interface KnobSpec {
  name: string;
  label: string;
  symbol: string;
  unit: string;
  help: string;
  min: number;
  max: number;
  /** In the knob's unit, or on a log scale in decades. */
  step: number;
  scale: ScaleKind;
  default: number;
  /** The value that the paper used, or null. */
  paper: number | null;
  /** The only values it takes, rising, where there are only some; limits, step and scale don't matter then. */
  values?: readonly number[];
}

/** A knob of the training lab. */
export interface LabKnobSpec extends KnobSpec {
  /** The architectures that have this knob. */
  enabled_for: readonly string[];
}

/** A level to compare with, drawn as a horizontal line. */
export interface ReferenceSpec {
  value: number;
  label: string;
}

/** A further column of a chart, drawn as a thinner dashed line with a key. */
export interface LineSpec {
  column: string;
  label: string;
  /** Names a colour of the palette or the theme. */
  color: string;
  /** An SVG dash pattern; empty: solid. */
  dash?: string;
}

/** How a quantity is called and written. */
export interface QuantityBase {
  column: string;
  label: string;
  unit: string;
  help: string;
  /** Decimals of a value. */
  digits: number;
  /** Names a colour of the palette or the theme. */
  color: string;
  reference: ReferenceSpec | null;
}

/** A chart of one quantity. */
export interface ChartSpec extends QuantityBase {
  /** Limits of the y axis; null: from the data. */
  domain: readonly [number | null, number | null];
  scale: ScaleKind;
  /** A y axis from the data reaches at least this far up. */
  least?: number;
  others: readonly LineSpec[];
}

/** A column of a sweep's table. */
export interface QuantitySpec extends QuantityBase {
  scales: AxisScales;
}

/** The kind of axis that a quantity has along either direction. */
export interface AxisScales {
  x: ScaleKind;
  y: ScaleKind;
}

/** How an architecture, or a control of one, is drawn; `color` names a colour of the palette or the theme. */
export interface SeriesSpec extends OptionSpec {
  color: string;
  shape: string;
  /** An SVG dash pattern; empty: solid. */
  dash: string;
}

/** One way to say the relative reconstruction bias in a number. */
export interface FormulaSpec {
  name: "corrected" | "v1" | "projection" | "norm_ratio";
  label: string;
  formula: string;
  /** An SVG dash pattern; empty: solid. */
  dash: string;
}

/** A colour on light and on dark pages, as #rrggbb; the ink is for text, by default the colour itself. */
export interface ColorSpec {
  light: string;
  dark: string;
  light_ink?: string;
  dark_ink?: string;
}

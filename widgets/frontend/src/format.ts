/** What stands in place of a number that isn't there. */
const MISSING = "–";

/** A typographic minus is as wide as a plus and as a digit, so a change of sign moves nothing. */
const withMinus = (text: string): string => text.replace("-", "−");

/** A fixed number of decimals, with commas between thousands. The locale is fixed too, as in the Python output beside it. */
export function formatFixed(value: number, digits: number): string {
  if (!Number.isFinite(value)) return MISSING;
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return withMinus(value.toLocaleString("en-US", options).replace(/^-(?=[0.,]*$)/, ""));
}

/** With its sign, also where it is positive; zero has none. */
export function formatSigned(value: number, digits: number): string {
  const text = formatFixed(value, digits);
  return value > 0 && /[1-9]/.test(text) ? `+${text}` : text;
}

export const formatCount = (value: number): string => formatFixed(value, 0);

/** A short label for a round number on an axis: 500, 1.5k, 2M. */
export function formatShort(value: number): string {
  const size = Math.abs(value);
  const [divisor, suffix] = size >= 1e6 ? [1e6, "M"] : size >= 1000 ? [1000, "k"] : [1, ""];
  return withMinus(String(Number((value / divisor).toPrecision(4)))) + suffix;
}

/** A decimal on a large rate would only flicker. */
export function formatRate(value: number): string {
  return formatFixed(value, value < 10 ? 1 : 0);
}

/**
 * A knob's value, in its usual digits if these tell it exactly, else in as many as it takes (at most six significant ones):
 * a value that Python set between two positions is shown as it is.
 */
export function formatKnob(value: number, usual: (value: number) => string): string {
  if (!Number.isFinite(value)) return MISSING;
  const text = usual(value);
  const exact = Number(value.toPrecision(6));
  return withMinus(Number(text) === exact ? text : String(exact));
}

/** The number of decimals with which a step is written: 0.05 has two. */
export function decimalsOf(step: number): number {
  const [mantissa = "", exponent = "0"] = String(step).split("e");
  return Math.max(0, (mantissa.split(".")[1]?.length ?? 0) - Number(exponent));
}

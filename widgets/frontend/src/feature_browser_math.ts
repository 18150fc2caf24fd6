/** What the feature browser computes: the order of its list, what is found, what is in view, how tokens are written. */

export interface Context {
  text_index: number;
  position: number;
  tokens: readonly string[];
  activations: readonly number[];
  peak: number;
}

export interface Effect {
  token: string;
  token_id: number;
  effect: number;
}

export interface Reading {
  feature: number;
  density: number;
  max_activation: number;
  probe_weight: number | null;
  contexts: readonly Context[];
  raised: readonly Effect[];
  lowered: readonly Effect[];
  nearest: readonly { feature: number; cosine: number }[];
  /** Tokens by activation, in equal bins from 0 to the largest. */
  histogram: readonly number[];
}

/** What an order sorts by; `column` is empty for the index itself. */
export interface Order {
  value: string;
  label: string;
  column: string;
  /** 1 where the least comes first. */
  sign: number;
}

/** Features in the order of the list; of equals the lower index comes first. */
export function listed(
  order: Order,
  column: (name: string) => Float32Array,
  showDead: boolean,
  found: ReadonlySet<number> | null,
): number[] {
  const density = column("density");
  const features = Array.from(density.keys()).filter(
    (feature) => (showDead || density[feature]! > 0) && (found === null || found.has(feature)),
  );
  if (!order.column) return features;
  const values = column(order.column);
  return features.sort((a, b) => order.sign * (values[a]! - values[b]!) || a - b);
}

/** What is compared when features are searched, as `searchable` in Python: lower case, one space for white space. */
export const searchable = (text: string): string => text.toLowerCase().replace(/[ \t\r\n]+/g, " ");

/** Whether a text of nothing but white space was given: it looks for nothing, and everything is listed. */
export const isBlank = (search: string): boolean => searchable(search).trim() === "";

/** Whether the text is part of one of a feature's contexts, or of one of the tokens that it raises. */
export function isFound(reading: Reading, search: string): boolean {
  const wanted = searchable(search);
  const texts = [...reading.contexts.map(({ tokens }) => tokens.join("")), ...reading.raised.map(({ token }) => token)];
  return texts.some((text) => searchable(text).includes(wanted));
}

/** The rows of a long list that are in view, with some more on either side: from the first to before the second. */
export function rowsInView(
  scrollTop: number,
  height: number,
  rowHeight: number,
  count: number,
  more = 8,
): [number, number] {
  const first = Math.floor(scrollTop / rowHeight) - more;
  const last = Math.ceil((scrollTop + height) / rowHeight) + more;
  const to = Math.min(count, Math.max(0, last));
  return [Math.min(Math.max(0, first), to), to];
}

/** The row that a key leads to from another (-1: none is chosen yet), or null where the key means nothing to a list. */
export function rowAfterKey(key: string, row: number, count: number, rowsOfPage: number): number | null {
  const moves: Record<string, number> = {
    ArrowDown: row + 1,
    ArrowUp: row < 0 ? count - 1 : row - 1,
    PageDown: row + rowsOfPage,
    PageUp: row - rowsOfPage,
    Home: 0,
    End: count - 1,
  };
  const to = moves[key];
  return to === undefined || count === 0 ? null : Math.min(count - 1, Math.max(0, to));
}

/** A letter that would not be seen, or would turn what stands around it: control and format characters but joiners. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u;
const JOINERS = new Set(["\u200c", "\u200d"]);
/** Flags of England, Scotland and Wales are spelt with these. */
const isTag = (letter: string): boolean => letter.codePointAt(0)! >= 0xe0020 && letter.codePointAt(0)! <= 0xe007f;
const SIGNS: Record<string, string> = { "\n": "↵", "\r": "␍", "\t": "⇥" };

/** A token as it is shown: line breaks and tabs as signs, other invisible letters by their code; spaces stay. */
export function visible(token: string): string {
  return Array.from(token, (letter) => {
    if (letter in SIGNS) return SIGNS[letter];
    if (!UNSEEN.test(letter) || JOINERS.has(letter) || isTag(letter)) return letter;
    return `\\u${letter.codePointAt(0)!.toString(16).padStart(4, "0")}`;
  }).join("");
}

/** A token that stands alone, in a list: one of nothing but spaces shows as many signs for them. */
export function visibleAlone(token: string): string {
  return token === "" ? "∅" : /^ +$/.test(token) ? "␣".repeat(token.length) : visible(token);
}

/** How strongly a token is shaded, 0 to 1: by its share of the feature's largest activation. */
export function shade(activation: number, largest: number): number {
  return activation > 0 && largest > 0 ? Math.min(1, activation / largest) : 0;
}

/** What a probe explorer looks up, out of its buffers. */

export interface Place {
  layer: number;
  l1: number;
  part: number;
}

/** The sizes of the axes before the last one; columns by name. */
export interface Axes {
  l1s: number;
  parts: number;
  representations: number;
  columns: readonly string[];
  /** Rows of the whole set of texts: as many bits. */
  rows: number;
}

/** The numbers of one probe, by name of the column. */
export type Numbers = (column: string) => number;

/** The rows whose bits are set, of those that begin with the byte `first`; the first row is in the lowest bit. */
export function rowsOf(bits: Uint8Array, first: number, count: number): number[] {
  const rows: number[] = [];
  for (let row = 0; row < count; row++) if (((bits[first + (row >> 3)] ?? 0) >> (row & 7)) & 1) rows.push(row);
  return rows;
}

/** Those of `rows` that aren't among `others`; both rise. */
export function without(rows: readonly number[], others: readonly number[]): number[] {
  const left = new Set(others);
  return rows.filter((row) => !left.has(row));
}

export const bytesFor = (rows: number): number => Math.ceil(rows / 8);

/** How many probes come before that of a place: layers, then L1 coefficients, parts, representations. */
export const probeIndex = ({ layer, l1, part }: Place, representation: number, axes: Axes): number =>
  ((layer * axes.l1s + l1) * axes.parts + part) * axes.representations + representation;

/** The numbers of the probe with this index in a buffer, from the number `offset` on; NaN where they aren't there. */
export function numbersAt(values: Float32Array, index: number, columns: readonly string[], offset = 0): Numbers {
  const first = offset + index * columns.length;
  return (column) => {
    const at = columns.indexOf(column);
    return at < 0 ? NaN : (values[first + at] ?? NaN);
  };
}

/** What was computed at a gate threshold: where, and for codes and PCA in this order. */
export interface Live {
  place: Place;
  threshold: number;
  numbers: readonly [Numbers, Numbers];
}

const HEADER = 4;

export function decodeLive(values: Float32Array, columns: readonly string[]): Live | null {
  if (values.length < HEADER + 2 * columns.length) return null;
  const [layer, l1, part, threshold] = values as unknown as [number, number, number, number];
  const numbers = [numbersAt(values, 0, columns, HEADER), numbersAt(values, 1, columns, HEADER)] as const;
  return { place: { layer, l1, part }, threshold, numbers };
}

export const samePlace = (a: Place, b: Place): boolean => a.layer === b.layer && a.l1 === b.l1 && a.part === b.part;

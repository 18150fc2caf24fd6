/** Binary data of a trait: a DataView, a Uint8Array or an ArrayBuffer, or nothing; the functions below read each. */
export type Bytes = unknown;

/**
 * Reads a float32 buffer in each form in which a front end hands it over: JupyterLab gives a DataView, Colab a Uint8Array,
 * or nothing when it has dropped the buffer. An unaligned view is copied, since a Float32Array can't start between two numbers.
 */
export function decodeFloat32(value: unknown): Float32Array {
  if (value instanceof ArrayBuffer) return new Float32Array(value, 0, value.byteLength >> 2);
  if (!ArrayBuffer.isView(value)) return new Float32Array(0);
  const { buffer, byteOffset, byteLength } = value;
  if (byteOffset % 4 === 0) return new Float32Array(buffer, byteOffset, byteLength >> 2) as Float32Array;
  return new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength), 0, byteLength >> 2) as Float32Array;
}

/** Reads bytes in each of these forms. */
export function decodeBytes(value: unknown): Uint8Array {
  if (value instanceof ArrayBuffer) return new Uint8Array(value);
  return ArrayBuffer.isView(value) ? new Uint8Array(value.buffer, value.byteOffset, value.byteLength) : new Uint8Array(0);
}

/** A row-major float32 matrix with named columns. */
export class Table {
  readonly rows: number;

  constructor(
    private readonly values: Float32Array,
    private readonly columns: readonly string[],
  ) {
    this.rows = columns.length ? Math.floor(values.length / columns.length) : 0;
  }

  /** One column, in which NaN says "not measured"; an unknown name was never measured. */
  column(name: string): Float32Array {
    const index = this.columns.indexOf(name);
    const out = new Float32Array(this.rows).fill(NaN);
    if (index < 0) return out;
    for (let row = 0; row < this.rows; row++) out[row] = this.values[row * this.columns.length + index] ?? NaN;
    return out;
  }
}

/** The last number of a column that was measured, or NaN. */
export function lastDefined(column: Float32Array): number {
  for (let row = column.length - 1; row >= 0; row--) {
    const value = column[row]!;
    if (Number.isFinite(value)) return value;
  }
  return NaN;
}

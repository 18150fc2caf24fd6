/** NaN, and not infinity, where there is nothing to divide by. */
export const ratio = (a: number, b: number): number => (b === 0 ? NaN : a / b);

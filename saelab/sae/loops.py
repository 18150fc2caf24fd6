"""The loops of a sparse training step, compiled by Numba: what matrix products leave over.

Each takes the rows, or features, ``first`` to ``last`` of a batch and the number of that part, and releases the
interpreter, so that `saelab.sae.workers` can run several parts at once. Nothing here allocates. Arrays are float32 or
float64, all of one kind, and contiguous. Sums over a batch are in float64.
"""

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Reordering sums lets the compiler use a CPU's vector instructions; NaN and infinity keep their meaning.
_options: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}
_inlined = numba.njit(**_options)
_compiled = numba.njit(**_options, cache=True)


@_inlined
def _add_rows(out, coefficients, places, start, end, matrix):
    """``out += coefficients[e] * matrix[places[e]]`` for e from start to end."""
    e = start
    while e + 4 <= end:
        c0, c1, c2, c3 = coefficients[e], coefficients[e + 1], coefficients[e + 2], coefficients[e + 3]
        r0, r1, r2, r3 = matrix[places[e]], matrix[places[e + 1]], matrix[places[e + 2]], matrix[places[e + 3]]
        for i in range(len(out)):
            out[i] += c0 * r0[i] + c1 * r1[i] + c2 * r2[i] + c3 * r3[i]
        e += 4
    while e < end:
        c, r = coefficients[e], matrix[places[e]]
        for i in range(len(out)):
            out[i] += c * r[i]
        e += 1


@_inlined
def _dot_rows(out, vector, places, start, end, matrix):
    """``out[e] = vector . matrix[places[e]]`` for e from start to end."""
    zero = vector.dtype.type(0)
    e = start
    while e + 4 <= end:
        r0, r1, r2, r3 = matrix[places[e]], matrix[places[e + 1]], matrix[places[e + 2]], matrix[places[e + 3]]
        s0, s1, s2, s3 = zero, zero, zero, zero
        for i in range(len(vector)):
            s0 += vector[i] * r0[i]
            s1 += vector[i] * r1[i]
            s2 += vector[i] * r2[i]
            s3 += vector[i] * r3[i]
        out[e], out[e + 1], out[e + 2], out[e + 3] = s0, s1, s2, s3
        e += 4
    while e < end:
        r, s = matrix[places[e]], zero
        for i in range(len(vector)):
            s += vector[i] * r[i]
        out[e] = s
        e += 1


@_inlined
def _add_rows_twice(one, other, to_one, to_other, places, start, end, matrix):
    """`_add_rows` of the same rows to two vectors, which reads each row once."""
    e = start
    while e + 4 <= end:
        c0, c1, c2, c3 = to_one[e], to_one[e + 1], to_one[e + 2], to_one[e + 3]
        d0, d1, d2, d3 = to_other[e], to_other[e + 1], to_other[e + 2], to_other[e + 3]
        r0, r1, r2, r3 = matrix[places[e]], matrix[places[e + 1]], matrix[places[e + 2]], matrix[places[e + 3]]
        for i in range(len(one)):
            one[i] += c0 * r0[i] + c1 * r1[i] + c2 * r2[i] + c3 * r3[i]
            other[i] += d0 * r0[i] + d1 * r1[i] + d2 * r2[i] + d3 * r3[i]
        e += 4
    while e < end:
        c, d, r = to_one[e], to_other[e], matrix[places[e]]
        for i in range(len(one)):
            one[i] += c * r[i]
            other[i] += d * r[i]
        e += 1


@_inlined
def _dot_rows_twice(of_one, of_other, one, other, places, start, end, matrix):
    """`_dot_rows` of the same rows with two vectors."""
    zero = one.dtype.type(0)
    e = start
    while e + 4 <= end:
        r0, r1, r2, r3 = matrix[places[e]], matrix[places[e + 1]], matrix[places[e + 2]], matrix[places[e + 3]]
        s0, s1, s2, s3, t0, t1, t2, t3 = zero, zero, zero, zero, zero, zero, zero, zero
        for i in range(len(one)):
            s0 += one[i] * r0[i]
            s1 += one[i] * r1[i]
            s2 += one[i] * r2[i]
            s3 += one[i] * r3[i]
            t0 += other[i] * r0[i]
            t1 += other[i] * r1[i]
            t2 += other[i] * r2[i]
            t3 += other[i] * r3[i]
        of_one[e], of_one[e + 1], of_one[e + 2], of_one[e + 3] = s0, s1, s2, s3
        of_other[e], of_other[e + 1], of_other[e + 2], of_other[e + 3] = t0, t1, t2, t3
        e += 4
    while e < end:
        r, s, t = matrix[places[e]], zero, zero
        for i in range(len(one)):
            s += one[i] * r[i]
            t += other[i] * r[i]
        of_one[e], of_other[e] = s, t
        e += 1


@intrinsic
def _lowest_bit(_, bits):
    """Which bit is the lowest that is set."""

    def code(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.uint64(types.uint64), code


@_inlined
def _append(bits, block, columns, at):
    """Append the places of the set bits: without a branch for each of a row's entries, of which few matter."""
    while bits:
        columns[at] = block + np.int64(_lowest_bit(bits))
        at += 1
        bits &= bits - np.uint64(1)
    return at


@_inlined
def _find_in_row(row, limit, columns, values, at):
    """Append where ``row`` exceeds ``limit``, or is NaN, and what it is there."""
    start, n = at, len(row)
    whole = n - n % 64
    for block in range(0, whole, 64):
        bits = np.uint64(0)
        for j in range(64):
            bits |= np.uint64(not (row[block + j] <= limit[block + j])) << np.uint64(j)
        at = _append(bits, block, columns, at)
    for j in range(whole, n):
        columns[at] = j
        at += not (row[j] <= limit[j])
    for e in range(start, at):
        values[e] = row[columns[e]]
    return at


@_inlined
def _screen_row(marks, xc, W_enc, limit, columns, values, at):
    """The same from marked candidates, whose values are computed here."""
    start, n = at, len(marks)
    whole = n - n % 64
    for block in range(0, whole, 64):
        bits = np.uint64(0)
        for j in range(64):
            bits |= np.uint64(marks[block + j] > 0) << np.uint64(j)
        at = _append(bits, block, columns, at)
    for j in range(whole, n):
        columns[at] = j
        at += marks[j] > 0
    _dot_rows(values, xc, columns, start, at, W_enc)
    kept = start
    for e in range(start, at):
        if not (values[e] <= limit[columns[e]]):
            columns[kept], values[kept] = columns[e], values[e]
            kept += 1
    return kept


@_inlined
def _are_too_many(first, last, screened, u, marks, limit, allowed):
    """Whether rows first to last have more than ``allowed`` candidates."""
    n = 0
    for b in range(first, last):
        in_row = np.int32(0)
        if screened:
            row_marks = marks[b]
            for j in range(len(row_marks)):
                in_row += np.int32(row_marks[j] > 0)
        else:
            row = u[b]
            for j in range(len(row)):
                in_row += np.int32(not (row[j] <= limit[j]))
        n += int(in_row)
    return n > allowed


@_inlined
def _find_row(b, screened, u, marks, xc, W_enc, limit, columns, values, at):
    if screened:
        return _screen_row(marks[b], xc[b], W_enc, limit, columns, values, at)
    return _find_in_row(u[b], limit, columns, values, at)


LARGE = 1e15
"""Products of lengths up to here are far from overflowing."""
UP = 1 + 2**-7
"""More than what rounding to bfloat16 takes away."""


@intrinsic
def _bfloat16(_, value):
    """The bits of a float32 rounded to bfloat16, ties to even."""

    def code(context, builder, signature, arguments):
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        odd = builder.and_(builder.lshr(bits, word(16)), word(1))
        rounded = builder.add(builder.add(bits, word(0x7FFF)), odd)
        return builder.trunc(builder.lshr(rounded, word(16)), ir.IntType(16))

    return types.int16(types.float32), code


@intrinsic
def _float32(_, bits):
    """A bfloat16 from its bits."""

    def code(context, builder, signature, arguments):
        word = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(arguments[0], word), word(16)), ir.FloatType())

    return types.float32(types.int16), code


@_inlined
def _round(row, out):
    """``row`` in bfloat16 and its length; zeros where that is not below `LARGE`."""
    square = np.float32(0)
    for i in range(len(row)):
        square += row[i] * row[i]
    length = math.sqrt(square)
    if length < LARGE:
        for i in range(len(row)):
            out[i] = _bfloat16(row[i])
        out[len(row) :] = 0
    else:
        out[:] = 0
    return length


@_compiled
def round_inputs(first, last, rows, out):
    """The left factor of `saelab.sae.sparse.Screen`: rows in bfloat16, then their lengths, 1 and 1."""
    one, far = _bfloat16(np.float32(1)), _bfloat16(np.float32(LARGE))
    n = rows.shape[1]
    for b in range(first, last):
        length = _round(rows[b], out[b])
        if length < LARGE:
            out[b, n] = _bfloat16(np.float32(length * UP + 1e-17))  # a length may lose what is below 1e-19 in a row
            out[b, n + 1], out[b, n + 2] = one, one
        else:  # positive with every feature
            out[b, n] = far


@_compiled
def round_features(first, last, rows, limit, out):
    """Its right factor, transposed: features in bfloat16, then the margin for a length of 1, and minus the limit."""
    one, far = _bfloat16(np.float32(1)), _bfloat16(np.float32(LARGE))
    n = rows.shape[1]
    margin = 1.01 * 2**-7 + n * 2**-22
    for j in range(first, last):
        length = _round(rows[j], out[j])
        if length < LARGE and abs(limit[j]) < LARGE:
            out[j, n] = _bfloat16(np.float32(length * UP * margin + 1e-17))
            bias = np.float32(abs(limit[j]) * 2**-10 - limit[j] + 1e-30)  # the last for what may be taken for 0
            upper = _bfloat16(bias)
            out[j, n + 1] = upper
            out[j, n + 2] = _bfloat16(bias - _float32(upper))
        else:  # positive with every input
            out[j] = 0
            out[j, n], out[j, n + 1] = one, far


@_compiled
def find(first, last, part, screened, u, marks, xc, W_enc, limit, allowed, columns, values, starts, ends, found):
    """Entries of ``u`` above ``limit``, or NaN, row by row; ``found`` is how many.

    ``screened``: ``u`` is unknown, and ``marks`` is positive at candidates. If a part has more candidates than
    ``allowed``, ``found`` is -1 and nothing else is done; there is room for these and one more.
    """
    if _are_too_many(first, last, screened, u, marks, limit, allowed):
        found[part] = -1
        return
    here = part * (allowed + 1)
    at = here
    for b in range(first, last):
        starts[b] = at
        at = _find_row(b, screened, u, marks, xc, W_enc, limit, columns, values, at)
        ends[b] = at
    found[part] = at - here


@_compiled
def gather(starts, ends, columns, values, row_starts, all_columns, all_values):
    """Entries of all parts side by side."""
    at = 0
    for b in range(len(starts)):
        row_starts[b] = at
        for e in range(starts[b], ends[b]):
            all_columns[at], all_values[at] = columns[e], values[e]
            at += 1
    row_starts[len(starts)] = at


@_compiled
def by_column(starts, ends, columns, column_starts, order, rows):
    """The numbers of all entries, and their rows, column by column."""
    column_starts[:] = 0
    for b in range(len(starts)):
        for e in range(starts[b], ends[b]):
            column_starts[columns[e] + 1] += 1
    for j in range(len(column_starts) - 1):
        column_starts[j + 1] += column_starts[j]
    for b in range(len(starts)):
        for e in range(starts[b], ends[b]):
            at = column_starts[columns[e]]
            order[at], rows[at] = e, b
            column_starts[columns[e]] = at + 1
    for j in range(len(column_starts) - 1, 0, -1):
        column_starts[j] = column_starts[j - 1]
    column_starts[0] = 0


@_compiled
def multiply(first, last, part, starts, columns, values, right, out):
    """``out += V @ right`` for rows first to last of a sparse V."""
    for b in range(first, last):
        _add_rows(out[b], values, columns, starts[b], starts[b + 1], right)


@_compiled
def sample(first, last, part, starts, columns, left, right, out):
    """``left @ right.T`` at the entries of rows first to last."""
    for b in range(first, last):
        _dot_rows(out, left[b], columns, starts[b], starts[b + 1], right)


@_inlined
def _take_error(x, reference, b_dec, out, factor, sum_away, sum_residual):
    """Of a row: e.e, r.r and x.r of the reconstruction r and the residual e, and ``|x - reference|^2``.

    ``out`` holds the reconstruction without ``b_dec``, and gets ``factor`` times the residual. ``reference`` and
    ``b_dec`` are float64.
    """
    ee, rr, xr, squares = 0.0, 0.0, 0.0, 0.0
    for i in range(len(x)):
        given = np.float64(x[i])
        r = np.float64(out[i]) + b_dec[i]
        e = r - given
        away = given - reference[i]
        ee += e * e
        rr += r * r
        xr += given * r
        squares += away * away
        sum_away[i] += away
        sum_residual[i] += e
        out[i] = factor * e
    return ee, rr, xr, squares


@_inlined
def _centred(reference, n, sum_away, squares):
    """``squares`` about the mean, which takes the place of ``sum_away``: `saelab.quantities.Spread.of`."""
    lost = 0.0
    for i in range(len(sum_away)):
        lost += sum_away[i] * sum_away[i]
        sum_away[i] = reference[i] + sum_away[i] / n
    return squares - lost / n


@_compiled
def sum_errors(x, reconstruction, residual, sums, mean):
    """The sums of `saelab.sae.base.BatchSums`: r.r, x.r, e.e and those of `saelab.quantities.Spread`."""
    rr, xr, ee, squares = 0.0, 0.0, 0.0, 0.0
    mean[:] = 0
    for b in range(len(x)):
        for i in range(x.shape[1]):
            given, r, e = np.float64(x[b, i]), np.float64(reconstruction[b, i]), np.float64(residual[b, i])
            away = given - np.float64(x[0, i])
            rr += r * r
            xr += given * r
            ee += e * e
            squares += away * away
            mean[i] += away
    sums[0], sums[1], sums[2], sums[3] = rr, xr, ee, _centred(x[0], len(x), mean, squares)


@_compiled
def learn_rows(
    first, last, part, screened, product, marks, xc, W_enc, limit, allowed, columns, u, starts, ends, found,
    codes, d_codes, d_pi, fired,
    x, W_dec, b_dec, wide_b_dec, reference, gate_bias, slope, shift, weights, threshold, auxiliary,
    to_error, to_sparsity, to_auxiliary, residual, frozen, sums, sum_away, sum_residual, sum_frozen,
):  # fmt: skip
    """Forward and backward, down to the entries, of `saelab.sae.fused`: finds them first, as `find` does.

    ``d_codes`` and ``d_pi`` are the loss's gradients with respect to the codes and, leaving out what goes through
    the codes, to the gate's pre-activations. ``sums`` has L0, the weighted penalty, the squared errors of both
    reconstructions, and the rest of what `_take_error` gives.
    """
    if _are_too_many(first, last, screened, product, marks, limit, allowed):
        found[part] = -1
        return
    zero = x.dtype.type(0)
    here = part * (allowed + 1)
    at = here
    n_on, penalty, error, auxiliary_error, rr, xr, squares = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    sum_away[part], sum_residual[part], sum_frozen[part] = 0, 0, 0
    for b in range(first, last):
        start = at
        at = _find_row(b, screened, product, marks, xc, W_enc, limit, columns, u, at)
        starts[b], ends[b] = start, at
        for e in range(start, at):
            j = columns[e]
            pi = u[e] + gate_bias[j]
            magnitude = slope[j] * u[e] + shift[j]
            codes[e] = zero if pi <= threshold or magnitude <= 0 else magnitude
            d_pi[e] = zero if pi <= 0 else pi
            penalty += weights[j] * d_pi[e]
            n_on += codes[e] > 0
            # A feature that only a raised threshold keeps off still learns: it is not dead.
            if magnitude > 0 and pi > min(threshold, 0):
                fired[j] = True
        r, f = residual[b], frozen[b]
        r[:] = zero
        if auxiliary:
            for i in range(len(r)):
                f[i] = b_dec[i] - x[b, i]
            _add_rows_twice(r, f, codes, d_pi, columns, start, at, W_dec)
        else:
            _add_rows(r, codes, columns, start, at, W_dec)
        of_row = _take_error(x[b], reference, wide_b_dec, r, x.dtype.type(1), sum_away[part], sum_residual[part])
        error += of_row[0]
        rr += of_row[1]
        xr += of_row[2]
        squares += of_row[3]
        if auxiliary:
            _dot_rows_twice(d_codes, d_pi, r, f, columns, start, at, W_dec)
            square = zero
            for i in range(len(f)):
                square += f[i] * f[i]
                sum_frozen[part, i] += f[i]
            auxiliary_error += square
        else:
            _dot_rows(d_codes, r, columns, start, at, W_dec)
        for e in range(start, at):
            d_codes[e] = zero if codes[e] <= 0 else to_error * d_codes[e]
            through = to_sparsity * weights[columns[e]]
            if auxiliary:
                through += to_auxiliary * d_pi[e]
            d_pi[e] = zero if u[e] + gate_bias[columns[e]] <= 0 else through
    sums[part, 0], sums[part, 1], sums[part, 2], sums[part, 3] = n_on, penalty, error, auxiliary_error
    sums[part, 4], sums[part, 5], sums[part, 6] = rr, xr, squares
    found[part] = at - here


@_compiled
def learn_features(
    first, last, part, column_starts, order, rows, u, codes, d_codes, d_pi, gate_bias, slope, to_error, to_frozen,
    residual, frozen, xc, W_enc, gathered, to_encoder, encoder, decoder, bias, live, d_W_enc, d_W_dec,
    d_gates, d_slopes, d_shifts, positives, d_b_dec,
):  # fmt: skip
    """Gradients of `saelab.sae.fused` with respect to the features' weights, summed over the batch.

    ``encoder``, ``decoder`` and ``bias``: which of ``W_enc``, ``W_dec`` and ``b_dec`` are trained; ``live``: the
    auxiliary term trains the decoder, too. ``d_b_dec`` gets the share that goes through the encoder.
    """
    zero = u.dtype.type(0)
    d_gate, d_slope, d_shift, positive = d_gates[0], d_slopes[0], d_shifts[0], positives[0]
    d_b_dec[part] = 0
    for j in range(first, last):
        start, end = column_starts[j], column_starts[j + 1]
        g, s, m, p = zero, zero, zero, zero
        for q in range(start, end):
            e = order[q]
            gathered[q] = to_error * codes[e]
            to_encoder[q] = d_pi[e] + slope[j] * d_codes[e]
            g += d_pi[e]
            m += d_codes[e]
            s += d_codes[e] * u[e]
            pi = u[e] + gate_bias[j]
            p += zero if pi <= 0 else pi
        d_gate[j], d_slope[j], d_shift[j], positive[j] = g, s, m, p
        if decoder:
            d_W_dec[j] = 0
            _add_rows(d_W_dec[j], gathered, rows, start, end, residual)
            if live:
                for q in range(start, end):
                    pi = u[order[q]] + gate_bias[j]
                    gathered[q] = zero if pi <= 0 else to_frozen * pi
                _add_rows(d_W_dec[j], gathered, rows, start, end, frozen)
        if encoder:
            d_W_enc[j] = 0
            _add_rows(d_W_enc[j], to_encoder, rows, start, end, xc)
        if bias:
            for i in range(d_b_dec.shape[1]):
                d_b_dec[part, i] -= (g + slope[j] * m) * W_enc[j, i]


@_compiled
def open_gates(
    first, last, part, u, gate_bias, slope, shift, weights, threshold, auxiliary, codes, positive_pi, sums, fired
):  # fmt: skip
    """The codes of all entries, and relu(pi) where there is an auxiliary term; `learn_rows` has the same sums.

    ``fired`` is ``(parts, d_sae)``: threads that set bits without a branch must not share them.
    """
    zero = u.dtype.type(0)
    n_on, penalty = 0.0, 0.0
    fired[part] = False
    for b in range(first, last):
        on_in_row, penalty_of_row = np.int32(0), zero
        for j in range(u.shape[1]):
            pi = u[b, j] + gate_bias[j]
            magnitude = slope[j] * u[b, j] + shift[j]
            code = zero if (pi <= threshold) | (magnitude <= 0) else magnitude
            codes[b, j] = code
            on_in_row += np.int32(code > 0)
            penalty_of_row += weights[j] * (zero if pi <= 0 else pi)
            fired[part, j] |= (magnitude > 0) & (pi > min(threshold, zero))
        if auxiliary:
            for j in range(u.shape[1]):
                pi = u[b, j] + gate_bias[j]
                positive_pi[b, j] = zero if pi <= 0 else pi
        n_on += on_in_row
        penalty += penalty_of_row
    sums[part, 0], sums[part, 1] = n_on, penalty


@_compiled
def take_errors(
    first, last, part, x, b_dec, wide_b_dec, reference, auxiliary, to_error, to_auxiliary, residual, frozen,
    sums, sum_away, sum_residual, sum_frozen,
):  # fmt: skip
    """Make what codes and relu(pi) decode to, without ``b_dec``, gradients of the loss; the rest of the sums."""
    zero = x.dtype.type(0)
    error, auxiliary_error, rr, xr, squares = 0.0, 0.0, 0.0, 0.0, 0.0
    sum_away[part], sum_residual[part], sum_frozen[part] = 0, 0, 0
    for b in range(first, last):
        of_row = _take_error(x[b], reference, wide_b_dec, residual[b], to_error, sum_away[part], sum_residual[part])
        error += of_row[0]
        rr += of_row[1]
        xr += of_row[2]
        squares += of_row[3]
        if auxiliary:
            square = zero
            for i in range(x.shape[1]):
                f = frozen[b, i] + (b_dec[i] - x[b, i])
                square += f * f
                sum_frozen[part, i] += f
                frozen[b, i] = to_auxiliary * f
            auxiliary_error += square
    sums[part, 2], sums[part, 3] = error, auxiliary_error
    sums[part, 4], sums[part, 5], sums[part, 6] = rr, xr, squares


@_compiled
def close_gates(
    first, last, part, gate_bias, slope, weights, auxiliary, to_sparsity, codes, d_codes, d_positive_pi, u,
    d_gate, d_slope, d_shift, positive,
):  # fmt: skip
    """Gradients with respect to ``u``, which take its place, and each part's with respect to gate and magnitude."""
    zero = u.dtype.type(0)
    g, s, m, p = d_gate[part], d_slope[part], d_shift[part], positive[part]
    g[:], s[:], m[:], p[:] = zero, zero, zero, zero
    for b in range(first, last):
        for j in range(u.shape[1]):
            pi = u[b, j] + gate_bias[j]
            through = to_sparsity * weights[j]
            if auxiliary:
                through += d_positive_pi[b, j]
            d_pi = zero if pi <= 0 else through
            d_code = zero if codes[b, j] <= 0 else d_codes[b, j]
            g[j] += d_pi
            m[j] += d_code
            s[j] += d_code * u[b, j]
            p[j] += zero if pi <= 0 else pi
            u[b, j] = d_pi + slope[j] * d_code


@_compiled
def add_parts(
    n, reference, to_error, to_auxiliary, sums, sum_away, sum_residual, sum_frozen,
    d_gate, d_slope, d_shift, positive, d_b_dec,
):  # fmt: skip
    """Add up what the parts of a batch, then of the features, left; the first part of each holds the result.

    That of ``sum_away`` is then the mean of the ``n`` inputs, and the squares among ``sums`` are about it.
    ``d_b_dec`` gets what goes through the decoder: ``to_auxiliary`` is 0 where the auxiliary term does not train it.
    """
    for part in range(1, len(sums)):
        sums[0] += sums[part]
        sum_away[0] += sum_away[part]
        sum_residual[0] += sum_residual[part]
        sum_frozen[0] += sum_frozen[part]
    sums[0, 6] = _centred(reference, n, sum_away[0], sums[0, 6])
    for part in range(1, len(d_gate)):
        d_gate[0] += d_gate[part]
        d_slope[0] += d_slope[part]
        d_shift[0] += d_shift[part]
        positive[0] += positive[part]
    for part in range(1, len(d_b_dec)):
        d_b_dec[0] += d_b_dec[part]
    for i in range(d_b_dec.shape[1]):
        d_b_dec[0, i] += to_error * sum_residual[0, i]
        if to_auxiliary:
            d_b_dec[0, i] += to_auxiliary * sum_frozen[0, i]


@_compiled
def adam(first, last, part, weight, gradient, mean, square, beta1, beta2, rate, root, eps, unit):
    """Adam on rows first to last. ``rate`` and ``root`` hold the bias corrections of mean and square.

    ``beta1`` of 0 leaves ``mean`` alone: it would be the gradient. ``unit``: the rows keep their norm of 1, for which
    the gradient loses what would change it.
    """
    one = weight.dtype.type(1)
    for j in range(first, last):
        w, g, m, v = weight[j], gradient[j], mean[j * (beta1 > 0)], square[j]
        along = weight.dtype.type(0)
        if unit:
            length = weight.dtype.type(0)
            for i in range(len(w)):
                along += g[i] * w[i]
                length += w[i] * w[i]
            along /= length
        if beta1 > 0:
            for i in range(len(w)):
                d = g[i] - along * w[i]
                m[i] = beta1 * m[i] + (one - beta1) * d
                v[i] = beta2 * v[i] + (one - beta2) * d * d
                w[i] -= rate * m[i] / (root * math.sqrt(v[i]) + eps)
        else:
            for i in range(len(w)):
                d = g[i] - along * w[i]
                v[i] = beta2 * v[i] + (one - beta2) * d * d
                w[i] -= rate * d / (root * math.sqrt(v[i]) + eps)
        if unit:
            length = weight.dtype.type(0)
            for i in range(len(w)):
                length += w[i] * w[i]
            scale = one / math.sqrt(length)
            for i in range(len(w)):
                w[i] *= scale

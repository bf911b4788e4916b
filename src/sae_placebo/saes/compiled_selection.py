"""Compiled loops that choose sites: see `jit` for the arrays, `selection` for what is chosen."""

from __future__ import annotations

import numpy as np

from sae_placebo.saes.jit import EXACT, LOOSE

SEGMENTS = 8
"""A row of pre-activations is folded this many times; lane i holds the largest of so many values."""


@EXACT
def fold_row(z, bias, limit, lanes):
    """Write into `lanes` the largest of z + bias - limit in each lane; return how many lanes."""
    d_sae = z.shape[0]
    s = d_sae // SEGMENTS
    z0, z1, z2, z3 = z[:s], z[s : 2 * s], z[2 * s : 3 * s], z[3 * s : 4 * s]
    z4, z5, z6, z7 = z[4 * s : 5 * s], z[5 * s : 6 * s], z[6 * s : 7 * s], z[7 * s : 8 * s]
    b0, b1, b2, b3 = bias[:s], bias[s : 2 * s], bias[2 * s : 3 * s], bias[3 * s : 4 * s]
    b4, b5 = bias[4 * s : 5 * s], bias[5 * s : 6 * s]
    b6, b7 = bias[6 * s : 7 * s], bias[7 * s : 8 * s]
    if limit.shape[0] == 0:
        for i in range(s):
            a0, a1 = max(z0[i] + b0[i], z1[i] + b1[i]), max(z2[i] + b2[i], z3[i] + b3[i])
            a2, a3 = max(z4[i] + b4[i], z5[i] + b5[i]), max(z6[i] + b6[i], z7[i] + b7[i])
            lanes[i] = max(max(a0, a1), max(a2, a3))
        for i in range(SEGMENTS * s, d_sae):
            lanes[s + i - SEGMENTS * s] = z[i] + bias[i]
    else:
        t0, t1, t2, t3 = limit[:s], limit[s : 2 * s], limit[2 * s : 3 * s], limit[3 * s : 4 * s]
        t4, t5 = limit[4 * s : 5 * s], limit[5 * s : 6 * s]
        t6, t7 = limit[6 * s : 7 * s], limit[7 * s : 8 * s]
        for i in range(s):
            a0 = max((z0[i] + b0[i]) - t0[i], (z1[i] + b1[i]) - t1[i])
            a1 = max((z2[i] + b2[i]) - t2[i], (z3[i] + b3[i]) - t3[i])
            a2 = max((z4[i] + b4[i]) - t4[i], (z5[i] + b5[i]) - t5[i])
            a3 = max((z6[i] + b6[i]) - t6[i], (z7[i] + b7[i]) - t7[i])
            lanes[i] = max(max(a0, a1), max(a2, a3))
        for i in range(SEGMENTS * s, d_sae):
            lanes[s + i - SEGMENTS * s] = (z[i] + bias[i]) - limit[i]
    return s + d_sae - SEGMENTS * s


@EXACT
def count_over(values, n, limit):
    """Return how many of the first n values are above `limit`."""
    count = np.int32(0)
    for i in range(n):
        count += np.int32(values[i] > limit)
    return count


@EXACT
def low_bound(lanes, n, k):
    """Return a limit that at least k lanes exceed, and not many more; 0 if fewer are positive."""
    if count_over(lanes, n, np.float32(0.0)) <= k:
        return np.float32(0.0)
    high = np.float32(0.0)
    for i in range(n):
        high = max(high, lanes[i])
    low, enough = np.float32(0.0), k + k // 4 + 4
    for _ in range(24):
        middle = np.float32(0.5) * (low + high)
        count = count_over(lanes, n, middle)
        if count >= k:
            low = middle
            if count <= enough:
                break
        else:
            high = middle
    return low


@EXACT
def push_over(z, bias, lanes, n_lanes, limit, found, latents, at):
    """Append every z + bias above `limit` from lanes that hold one; return the new length."""
    d_sae = z.shape[0]
    s = d_sae // SEGMENTS
    for i in range(n_lanes):
        if lanes[i] > limit:
            if i < s:
                for j in range(SEGMENTS):
                    place = i + j * s
                    value = z[place] + bias[place]
                    if value > limit:
                        found[at] = value
                        latents[at] = place
                        at += 1
            else:
                place = i - s + SEGMENTS * s
                found[at] = z[place] + bias[place]
                latents[at] = place
                at += 1
    return at


@EXACT
def edge_value(bits, start, stop, k):
    """Return the k-th largest of positive floats, given as their bits, which are in order.

    Infinity and NaN, which a training that diverges gives, are largest; a negative NaN is least.
    """
    low, high = np.int32(0), np.int32(0x7FFFFFFF)
    while high - low > 1:
        middle = low + (high - low) // np.int32(2)
        count = np.int32(0)
        for i in range(start, stop):
            count += np.int32(bits[i] >= middle)
        if count >= k:
            low = middle
        else:
            high = middle
    return low


@EXACT
def keep_largest(found, bits, latents, start, stop, k):
    """Keep the k largest of a run, in place; among equals the lower latents. Return its new end.

    Never more than k, whatever the values: callers have room for no more.
    """
    if stop - start <= k:
        return stop
    edge = edge_value(bits, start, stop, k)
    above, equal = 0, 0
    for i in range(start, stop):
        above += bits[i] > edge
        equal += bits[i] == edge
    highest = np.int32(0x7FFFFFFF)
    if equal > k - above:  # a tie at the edge: find the largest latent that still belongs
        highest, last = np.int32(-1), np.int32(-1)
        for _ in range(k - above):
            highest = np.int32(0x7FFFFFFF)
            for i in range(start, stop):
                if bits[i] == edge and latents[i] > last:
                    highest = min(highest, latents[i])
            last = highest
    at, full = start, start + k
    for i in range(start, stop):
        if at < full and (bits[i] > edge or (bits[i] == edge and latents[i] <= highest)):
            found[at] = found[i]
            latents[at] = latents[i]
            at += 1
    return at


@EXACT
def select_rows(z, bias, k, lanes, found, bits, latents, counts, at):
    """Append each token's k largest z + bias above zero; return the new length.

    `found` must have room for `d_sae` more values before every token.
    """
    none = np.empty(0, np.float32)
    for t in range(z.shape[0]):
        n = fold_row(z[t], bias, none, lanes)
        limit = low_bound(lanes, n, k)
        stop = push_over(z[t], bias, lanes, n, limit, found, latents, at)
        stop = keep_largest(found, bits, latents, at, stop, k)
        counts[t] = stop - at
        at = stop
    return at


@EXACT
def quantize(rows, first, stop, small, scales):
    """Round rows to 8 bits, each by a scale of its own."""
    d_in = rows.shape[1]
    for t in range(first, stop):
        row, out, high = rows[t], small[t], np.float32(1e-30)
        for i in range(d_in):
            high = max(high, abs(row[i]))
        factor = np.float32(127.0) / high
        scales[t] = high / np.float32(127.0)
        for i in range(d_in):
            value = row[i] * factor
            out[i] = np.int8(value + np.float32(0.5) if value > 0 else value - np.float32(0.5))


@EXACT
def widen(products, scale, scales, out):
    """Write one row of 8-bit products as floats in the units of the pre-activations."""
    for i in range(out.shape[0]):
        out[i] = np.float32(products[i]) * (scale * scales[i])


@LOOSE
def refine(row, weights, bias, found, latents, start, stop):
    """Compute candidates' pre-activations anew, in float32; keep those above zero."""
    at = start
    for p in range(start, stop):
        other, total = weights[latents[p]], np.float32(0.0)
        for i in range(row.shape[0]):
            total += row[i] * other[i]
        value = total + bias[latents[p]]
        if value > 0:
            found[at] = value
            latents[at] = latents[p]
            at += 1
    return at


@EXACT
def search_rows(
    products, scale, scales, inputs, weights, bias, k, candidates, z, lanes, found, bits, latents,
    counts, at,
):  # fmt: skip
    """Do as `select_rows`, with candidates looked for in 8-bit products and refined in float32.

    `candidates` of them are refined per token, somewhat more where lanes tie.
    """
    none = np.empty(0, np.float32)
    for t in range(products.shape[0]):
        widen(products[t], scale[t], scales, z)
        n = fold_row(z, bias, none, lanes)
        limit = low_bound(lanes, n, candidates)
        stop = push_over(z, bias, lanes, n, limit, found, latents, at)
        stop = keep_largest(found, bits, latents, at, stop, candidates)
        stop = refine(inputs[t], weights, bias, found, latents, at, stop)
        stop = keep_largest(found, bits, latents, at, stop, k)
        counts[t] = stop - at
        at = stop
    return at


@EXACT
def search_above(
    products, scale, scales, inputs, weights, bias, loose, limit, z, lanes, found, latents, counts,
    first, at,
):  # fmt: skip
    """Do as `select_above` for one limit; candidates are those above `loose` in 8-bit products."""
    none = np.empty(0, np.float32)
    for t in range(first, products.shape[0]):
        if at + products.shape[1] > found.shape[0]:
            return t, at
        widen(products[t], scale[t], scales, z)
        n = fold_row(z, bias, none, lanes)
        stop = push_over(z, bias, lanes, n, loose, found, latents, at)
        stop = refine(inputs[t], weights, bias, found, latents, at, stop)
        start = at
        for p in range(start, stop):
            if found[p] > limit:
                found[at] = found[p]
                latents[at] = latents[p]
                at += 1
        counts[t] = at - start
    return products.shape[0], at


@EXACT
def select_above(z, bias, limit, lanes, found, latents, counts, first, at):
    """Append every z + bias above `limit`, [d_sae] or [1]; return the next token and the length.

    Stops early, before a token for which there might not be room.
    """
    d_sae = z.shape[1]
    s = d_sae // SEGMENTS
    none = np.empty(0, np.float32)
    common = limit.shape[0] == 1
    for t in range(first, z.shape[0]):
        if at + d_sae > found.shape[0]:
            return t, at
        start = at
        if common:
            n = fold_row(z[t], bias, none, lanes)
            at = push_over(z[t], bias, lanes, n, limit[0], found, latents, at)
        else:
            n = fold_row(z[t], bias, limit, lanes)
            for i in range(n):
                if lanes[i] > 0:
                    for j in range(SEGMENTS if i < s else 1):
                        place = i + j * s if i < s else i - s + SEGMENTS * s
                        value = z[t, place] + bias[place]
                        if value > limit[place]:
                            found[at] = value
                            latents[at] = place
                            at += 1
        counts[t] = at - start
    return z.shape[0], at


@EXACT
def keep_batch(found, bits, latents, offsets, k):
    """Keep the k largest of all sites, in place; earlier tokens, then lower latents, among equals."""
    n = offsets[-1]
    if n <= k:
        return
    edge = edge_value(bits, 0, n, k)
    above = 0
    for i in range(n):
        above += bits[i] > edge
    left, at = k - above, 0
    for t in range(offsets.shape[0] - 1):
        start, stop = offsets[t], offsets[t + 1]
        offsets[t] = at
        over, equal = 0, 0
        for i in range(start, stop):
            over += bits[i] > edge
            equal += bits[i] == edge
        end = keep_largest(found, bits, latents, start, stop, over + min(equal, left))
        left -= min(equal, left)
        for i in range(start, end):
            found[at] = found[i]
            latents[at] = latents[i]
            at += 1
    offsets[-1] = at

"""Compiled loops behind the selection: decode, sort by latent, and step the rows; see `jit`."""

from __future__ import annotations

import numpy as np

from sae_placebo.saes.jit import EXACT, LOOSE


@LOOSE
def decode_rows(inputs, decoder, offsets, latents, values, first, stop, error, products, sums):
    """Write decoded - inputs, and its product with each site's row.

    `sums` [2, d_in] gets the column sums of the error and of the inputs. Return the energies of both.
    """
    d_in = inputs.shape[1]
    energy, given = 0.0, 0.0
    error_sum, input_sum = sums[0], sums[1]
    for t in range(first, stop):
        e, x, start, end = error[t], inputs[t], offsets[t], offsets[t + 1]
        for i in range(d_in):
            e[i] = -x[i]
        p = start
        while p + 4 <= end:
            r0, r1 = decoder[latents[p]], decoder[latents[p + 1]]
            r2, r3 = decoder[latents[p + 2]], decoder[latents[p + 3]]
            v0, v1, v2, v3 = values[p], values[p + 1], values[p + 2], values[p + 3]
            for i in range(d_in):
                e[i] += v0 * r0[i] + v1 * r1[i] + v2 * r2[i] + v3 * r3[i]
            p += 4
        while p < end:
            r0, v0 = decoder[latents[p]], values[p]
            for i in range(d_in):
                e[i] += v0 * r0[i]
            p += 1
        for p in range(start, end):
            r0, total = decoder[latents[p]], np.float32(0.0)
            for i in range(d_in):
                total += e[i] * r0[i]
            products[p] = total
        total, square = np.float32(0.0), np.float32(0.0)
        for i in range(d_in):
            total += e[i] * e[i]
            square += x[i] * x[i]
            error_sum[i] += e[i]
            input_sum[i] += x[i]
        energy += float(total)
        given += float(square)
    return energy, given


@EXACT
def by_latent(latents, offsets, to_z, starts, order, tokens, totals, fired, values):
    """Sort sites by latent, then by token; sum `to_z` by latent; note which latents fired."""
    d_sae = starts.shape[0] - 1
    n = offsets[-1]
    starts[:] = 0
    totals[:] = 0
    fired[:] = False
    for p in range(n):
        starts[latents[p] + 1] += 1
    for f in range(d_sae):
        starts[f + 1] += starts[f]
    for t in range(offsets.shape[0] - 1):
        for p in range(offsets[t], offsets[t + 1]):
            f = latents[p]
            order[starts[f]] = p
            tokens[starts[f]] = t
            starts[f] += 1
            totals[f] += to_z[p]
            if values[p] > 0:
                fired[f] = True
    for f in range(d_sae, 0, -1):
        starts[f] = starts[f - 1]
    starts[0] = 0


@LOOSE
def row_sum(rows, tokens, order, weights, scale, start, stop, total):
    """Write the sum of `rows[tokens]`, weighted by `weights[order]` times `scale`."""
    d_in = total.shape[0]
    for i in range(d_in):
        total[i] = 0
    q = start
    while q + 4 <= stop:
        r0, r1, r2, r3 = (
            rows[tokens[q]],
            rows[tokens[q + 1]],
            rows[tokens[q + 2]],
            rows[tokens[q + 3]],
        )
        w0, w1 = scale * weights[order[q]], scale * weights[order[q + 1]]
        w2, w3 = scale * weights[order[q + 2]], scale * weights[order[q + 3]]
        for i in range(d_in):
            total[i] += w0 * r0[i] + w1 * r1[i] + w2 * r2[i] + w3 * r3[i]
        q += 4
    while q < stop:
        r0, w0 = rows[tokens[q]], scale * weights[order[q]]
        for i in range(d_in):
            total[i] += w0 * r0[i]
        q += 1


@LOOSE
def row_sums(sites, chosen, rows, weights, scale, out, first, stop):
    """Write `row_sum` of the sites of each chosen latent."""
    starts, order, tokens = sites
    for i in range(first, stop):
        f = chosen[i]
        row_sum(rows, tokens, order, weights, scale, starts[f], starts[f + 1], out[i])


@LOOSE
def adam_row(row, mean, square, gradient, adam):
    """Take one Adam step on a row, in place; `adam` holds rate / correction, betas, ..., see Adam."""
    rate, beta1, beta2, root, eps = adam[0], adam[1], adam[2], adam[3], adam[4]
    one = np.float32(1.0)
    for i in range(row.shape[0]):
        g = gradient[i]
        m = mean[i] + (one - beta1) * (g - mean[i])
        v = beta2 * square[i] + (one - beta2) * g * g
        mean[i] = m
        square[i] = v
        row[i] -= rate * m / (np.sqrt(v) * root + eps)


@LOOSE
def scale_row(row, factor):
    """Multiply a row by a number, in place."""
    for i in range(row.shape[0]):
        row[i] *= factor


@LOOSE
def away_from(gradient, row):
    """Take off the part of `gradient` that lies along the unit `row`, in place."""
    along = np.float32(0.0)
    for i in range(row.shape[0]):
        along += gradient[i] * row[i]
    for i in range(row.shape[0]):
        gradient[i] -= along * row[i]


@LOOSE
def to_unit_length(row):
    """Scale a row to unit length, in place."""
    square = np.float32(0.0)
    for i in range(row.shape[0]):
        square += row[i] * row[i]
    scale_row(row, np.float32(1.0) / np.sqrt(square))


@LOOSE
def wake(mean, square, beta2, missed):
    """Give a row the moments that it would have after `missed` more steps without a gradient."""
    factor = np.float32(beta2**missed)
    for i in range(mean.shape[0]):
        mean[i] = 0
        square[i] *= factor


@LOOSE
def rests(f, untouched, state, quiet, beta2, patience):
    """Count a step without a gradient and return whether the row is left alone; wake it otherwise."""
    if untouched:
        quiet[f] += 1
        return quiet[f] > patience
    if quiet[f] > patience:
        wake(state[1][f], state[2][f], beta2, quiet[f] - patience)
    quiet[f] = 0
    return False


@LOOSE
def add_row(total, row):
    """Add a row, in place."""
    for i in range(total.shape[0]):
        total[i] += row[i]


@LOOSE
def update_encoder(
    sites, inputs, to_z, extra, state, quiet, totals, offset, adam, patience, first, stop
):  # fmt: skip
    """Sum each latent's gradient and take its Adam step, while its row is in cache.

    Args:
        sites: (starts, order, tokens) by latent.
        inputs: What the encoder read.
        to_z: Derivative at each site.
        extra: (place, rows): rows to add; `place[f]` is a row's number or -1.
        state: (weights, mean, square), each [d_sae, d_in].
        quiet: [d_sae] steps since the last gradient.
        totals: [d_sae] sums of `to_z`.
        offset: [d_in] gets minus the sum of the rows, as they were, times `totals`.
        adam: See `adam_row`.
        patience: After so many quiet steps the mean has decayed below what float32 can add.
        first: First latent.
        stop: Past the last one.
    """
    starts, order, tokens = sites
    place, more = extra
    weights, mean, square = state
    gradient = np.empty(inputs.shape[1], np.float32)
    for f in range(first, stop):
        a, b = starts[f], starts[f + 1]
        if rests(f, a == b and place[f] < 0, state, quiet, adam[2], patience):
            continue
        if totals[f] != 0:
            row, total = weights[f], totals[f]
            for i in range(row.shape[0]):
                offset[i] -= total * row[i]
        row_sum(inputs, tokens, order, to_z, np.float32(1.0), a, b, gradient)
        if place[f] >= 0:
            add_row(gradient, more[place[f]])
        adam_row(weights[f], mean[f], square[f], gradient, adam)


@LOOSE
def update_decoder(sites, error, values, extra, state, quiet, adam, patience, scale, first, stop):
    """Do the same for decoder rows, projected before the step and of unit length after it."""
    starts, order, tokens = sites
    place, more = extra
    weights, mean, square = state
    gradient = np.empty(error.shape[1], np.float32)
    for f in range(first, stop):
        a, b = starts[f], starts[f + 1]
        if rests(f, a == b and place[f] < 0, state, quiet, adam[2], patience):
            continue
        row_sum(error, tokens, order, values, scale, a, b, gradient)
        if place[f] >= 0:
            add_row(gradient, more[place[f]])
        away_from(gradient, weights[f])
        adam_row(weights[f], mean[f], square[f], gradient, adam)
        to_unit_length(weights[f])

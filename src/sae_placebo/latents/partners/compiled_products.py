"""Compiled loops for `partners`: products of two SAEs' codes, one latent at a time.

Only entries where both are active are read. Sums are added token by token, in double precision and in the
order of SciPy's sparse product, so that both give the same bits.

A latent's tokens lie far apart in memory, so that the processor would wait for each row of b. Rows are
prefetched a few tokens ahead, which makes the loops three times as fast. Indices are unsigned, since numba
tests in every product whether a signed index is negative.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

from sae_placebo.saes.jit import EXACT

AHEAD = 8
"""How many tokens ahead rows are prefetched."""
_LINE = 16
"""How many numbers of 4 bytes a line of cache holds."""


def _generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    ir: Any = vars(cgutils)["ir"]
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    place = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
    # the three numbers mean: to read, to keep in all levels, data
    builder.call(prefetch, [place, number(0), number(3), number(1)])
    return context.get_dummy_value()


def _typed(context: Any, array: Any, index: Any) -> Any:
    """Prefetch the line of cache that holds an entry; nothing is read."""
    return types.void(array, index), _generate


# numba stores the function itself with compiled code, so that no checker of types may be wrapped around it
_ask_for = intrinsic(inspect.unwrap(_typed))


@EXACT
def best_by_latent(
    columns: Any, rows: Any, place: Any, moments: Any, first: int, stop: int, out: Any
) -> None:
    """Write, for latents `first` to `stop` of a, the latent of b with the largest covariance / sd.

    Args:
        columns: (indptr, tokens, values) of a by latent.
        rows: (indptr, latents, values) of b by token.
        place: [token] the row of b that is paired with each token of a.
        moments: (sums of a, means of b, 1 / sd of b); where b's latent is constant, its mean is infinite
            and 1 / sd is not 0.
        first: The first latent.
        stop: One past the last latent.
        out: (partner, score), which are written; -1 and -inf where a's latent is silent or b has no
            candidate.
    """
    a_start, a_token, a_value = columns
    b_start, b_latent, b_value = rows
    a_sum, b_mean, b_scale = moments
    partner, score = out
    total = np.zeros(b_mean.shape[0], np.float64)
    for i in range(first, stop):
        partner[i], score[i] = -1, -np.inf
        if a_start[i] == a_start[i + 1]:
            continue
        total[:] = 0.0
        stop_at = a_start[i + 1]
        for p in range(a_start[i], stop_at):
            if p + AHEAD < stop_at:
                t = place[a_token[p + AHEAD]]
                for q in range(b_start[t], b_start[t + 1], _LINE):
                    _ask_for(b_latent, np.intp(q))
                    _ask_for(b_value, np.intp(q))
            value = np.float64(a_value[p])
            t = place[a_token[p]]
            for q in range(b_start[t], b_start[t + 1]):
                total[b_latent[q]] += value * b_value[q]
        best, at, level = -np.inf, -1, a_sum[i]
        for j in range(total.shape[0]):
            candidate = (total[j] - level * b_mean[j]) * b_scale[j]
            if candidate > best:
                best, at = candidate, j
        partner[i], score[i] = at, best


@EXACT
def pair_by_group(
    columns: Any, rows: Any, partner: Any, group: Any, first: int, stop: int, out: Any
) -> None:
    """Add, for each latent of a and its partner, products and joint firings by group to `out`."""
    a_start, a_token, a_value = columns
    b_start, b_latent, b_value = rows
    products, joint = out
    for i in range(first, stop):
        j = partner[i]
        if j < 0:
            continue
        stop_at = a_start[i + 1]
        for p in range(a_start[i], stop_at):
            if p + AHEAD < stop_at:
                t = a_token[p + AHEAD]
                for q in range(b_start[t], b_start[t + 1], _LINE):
                    _ask_for(b_latent, np.intp(q))
            t = a_token[p]
            for q in range(b_start[t], b_start[t + 1]):
                if b_latent[q] == j:
                    products[i, group[t]] += np.float64(a_value[p]) * b_value[q]
                    joint[i, group[t]] += 1.0
                    break


@EXACT
def sums_by_group(indptr: Any, latents: Any, values: Any, group: Any, out: Any) -> None:
    """Add activations, their squares and firings by group and latent to `out`, [3, group, latent]."""
    sums, squares, firings = out[0], out[1], out[2]
    for t in range(group.shape[0]):
        g = group[t]
        for q in range(indptr[t], indptr[t + 1]):
            j, value = latents[q], np.float64(values[q])
            sums[g, j] += value
            squares[g, j] += value * value
            firings[g, j] += 1.0

"""The hot loops of a step are compiled by numba, which ships as a wheel.

Each kernel works on a range of tokens or of latents and lets the interpreter go, so several threads
run it on ranges of their own; no two write to the same place and no result depends on their order.
Nothing is specific to one kind of CPU: loops are written so that the compiler finds vectors of
whatever width there is. Compiled code is kept on disk, so only the first run on a machine waits for it.

Arrays: z and inputs are float32, latents int32. Sites are stored token by token, `offsets[t]` to
`offsets[t + 1]`. W_enc and W_dec are both [d_sae, d_in]: a latent's row is one run of memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numba


def _compiled(fastmath: set[str]) -> Callable[[Callable[..., Any]], Any]:
    def compiled(function: Callable[..., Any]) -> Any:
        # what a checker of types wrapped around the function is no part of the loop
        return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)(
            inspect.unwrap(function)
        )

    return compiled


# NaN and signed zero may be treated loosely: a batch with NaN is refused after the step's first half.
# Sums may be reordered in products of rows, but not where a sign decides which latent is active.
EXACT = _compiled({"nnan", "nsz"})
LOOSE = _compiled({"nnan", "nsz", "reassoc", "contract"})

"""Threads that wait for each other are told to sleep soon.

The libraries below torch, numpy and scikit-learn split an operation among threads, which meet at its end.
One that arrives early does not sleep at once: it asks again and again whether the others are there, for
milliseconds (GNU OpenMP 300,000 times, Intel's and LLVM's for 200 ms, OpenBLAS for 2^26 processor cycles).
Where every thread has a processor, the others come in microseconds. Where other programs run too, the one
that is waited for may have been put aside for longer than that, and a trial beside two busy programs spent
86% of its processor time on asking. So threads ask for some tens of microseconds, then sleep.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

AWAKE = {
    "GOMP_SPINCOUNT": "2000",
    "KMP_BLOCKTIME": "1",
    "OPENBLAS_THREAD_TIMEOUT": "16",
}
"""GNU OpenMP (a number of askings), Intel's and LLVM's OpenMP (milliseconds) and OpenBLAS (the binary
logarithm of a number of processor cycles) read these settings when they are loaded."""
_OPENMP = "OMP_WAIT_POLICY"
"""The standard setting for all of OpenMP, which a user may have made."""


def sleep_soon(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have threads that wait sleep soon, in libraries that are loaded from now on.

    What the user has set is left as it is: each of these variables, and `OMP_WAIT_POLICY`, which stands
    for those of OpenMP. A library that is loaded already has read its settings, so where torch was
    imported before this package nothing changes for it. No result depends on any of them.
    """
    for name, value in AWAKE.items():
        if name == "OPENBLAS_THREAD_TIMEOUT" or _OPENMP not in environment:
            environment.setdefault(name, value)

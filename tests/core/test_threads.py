"""Threads that wait for each other: set before a library reads it, and only where nobody else has."""

from __future__ import annotations

import os
import subprocess
import sys

from sae_placebo.core.threads import AWAKE, sleep_soon

_SPUN = """
import sae_placebo, os, sys
print(*(os.environ.get(name) for name in sys.argv[1:]), "torch" in sys.modules)
"""


def test_what_the_user_has_set_is_left() -> None:
    found: dict[str, str] = {}
    sleep_soon(found)
    assert found == AWAKE
    own = {"GOMP_SPINCOUNT": "7", "OPENBLAS_THREAD_TIMEOUT": "20"}
    sleep_soon(own)
    assert own == AWAKE | {"GOMP_SPINCOUNT": "7", "OPENBLAS_THREAD_TIMEOUT": "20"}
    policy = {"OMP_WAIT_POLICY": "active"}
    sleep_soon(policy)
    assert policy == {
        "OMP_WAIT_POLICY": "active",
        "OPENBLAS_THREAD_TIMEOUT": AWAKE["OPENBLAS_THREAD_TIMEOUT"],
    }


def test_importing_the_package_sets_it_before_any_library_is_loaded() -> None:
    clean = {name: value for name, value in os.environ.items() if name not in AWAKE}
    clean.pop("OMP_WAIT_POLICY", None)
    found = subprocess.run(
        [sys.executable, "-c", _SPUN, *AWAKE],
        env=clean, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.split() == [*AWAKE.values(), "False"]

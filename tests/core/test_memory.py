from __future__ import annotations

import subprocess
import sys

import pytest

from sae_placebo.core import memory
from sae_placebo.core.errors import OutOfMemory

CODE = """
import ctypes, pathlib
from sae_placebo.core import memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: blocks come from the heap


def held():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


blocks = [libc.malloc(1 << 20) for _ in range(256)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
last = libc.malloc(1 << 20)  # on top, so that the heap does not shrink by itself
for block in blocks:
    libc.free(block)
before = held()
memory.give_back()
print(before - held())
"""


@pytest.mark.skipif(memory._trim() is None, reason="the C library has no malloc_trim")
def test_freed_memory_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 128 << 20


def test_nothing_is_done_where_the_library_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_trim", lambda: None)
    memory.give_back()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8.00 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_a_want_of_memory_is_one_sentence(error: Exception) -> None:
    with (
        pytest.raises(OutOfMemory, match=r"^there is not enough memory.*run again$") as told,
        memory.explained(),
    ):
        raise error
    assert str(error) in str(told.value)
    assert told.value.__cause__ is error


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="other"), memory.explained():
        raise RuntimeError("other")

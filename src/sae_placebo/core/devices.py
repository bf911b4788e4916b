"""Models run and SAEs are trained on the CPU, or on an accelerator that torch can use."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from sae_placebo.core import precision
from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch


def check_device(name: str) -> str:
    """Return `name` if this machine has that device.

    Torch is loaded only where something else than the CPU is asked for.

    Raises:
        SpecError: no such device, by its name or on this machine.
    """
    if name == "cpu":
        return name
    if re.fullmatch(r"cuda(:\d+)?", name) is None:
        raise SpecError(f"device is {name!r:.80}; allowed are 'cpu', 'cuda' and 'cuda:<number>'")
    if not torch.cuda.is_available():
        raise SpecError(
            f"device is {name!r}, but torch {torch.__version__} finds no CUDA device here: write "
            "device = 'cpu', or install a torch that is built for CUDA on a machine that has one"
        )
    n = torch.cuda.device_count()
    if int(name.partition(":")[2] or 0) >= n:
        raise SpecError(
            f"device is {name!r}, but this machine has {n}, counted from 0: write 'cuda:0' to "
            f"'cuda:{n - 1}', or 'cpu'"
        )
    return name


def describe_device(name: str) -> dict[str, str]:
    """Return the device and, for an accelerator, its model: a result's last bits may depend on it."""
    if name == "cpu":
        return {"device": name}
    return {"device": name.partition(":")[0], "accelerator": torch.cuda.get_device_name(name)}


@contextlib.contextmanager
def settings(name: str) -> Iterator[None]:
    """Switch on, inside the block, what makes this device fast and changes no result.

    On a CPU, the faster exact float32 products and a heap that keeps its pages. The setting behind the
    former would permit TF32 or less on an accelerator, which takes torch's own.
    """
    if name != "cpu":
        yield
        return
    with precision.fast_products(), precision.kept_heap():
        yield

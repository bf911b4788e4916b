"""Heavy libraries, imported on first use.

A wrong trial file must be refused in under a second, and `import torch` alone takes about one. So
modules write `from sae_placebo.core.lazy import torch` instead of `import torch`; nothing loads until an
attribute is read. Type checkers see the real modules.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pandas
    import torch as torch
    import transformers as transformers
else:

    class _Lazy:
        """Stands for a module until one of its attributes is asked for."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(importlib.import_module(self._name), attribute)

        def __repr__(self) -> str:
            return f"<lazily imported {self._name}>"

    torch = _Lazy("torch")
    transformers = _Lazy("transformers")
    pandas = _Lazy("pandas")

__all__ = ["pandas", "torch", "transformers"]

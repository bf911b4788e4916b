"""The control that draws fresh weights from the architecture's own initializer, by the law of step 0."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

from sae_placebo.controls.model.base import (
    CONTROLS,
    INVARIANTS,
    Control,
    Record,
    SampleText,
    change_all,
)
from sae_placebo.controls.model.tensors import Tensor, tensors, tie_notes
from sae_placebo.core.lazy import torch, transformers
from sae_placebo.core.spec import generator
from sae_placebo.models.specs import ModelSpec

_SAMPLE = 1 << 17


@CONTROLS.add
class Init(Control):
    """It makes the model what its class makes of its config, before any training.

    Every parameter is drawn anew; norm gains become 1 and biases 0 where the architecture says so. Buffers
    hold nothing learned and stay. A parameter that was at its initial value already (a bias that was never
    trained) is listed as kept.

    The law is that of the model's class in transformers and of its config's `initializer_range`. It is that
    of the model's own step 0 only where its makers used the same. Where they published step 0, `revision`
    reads it.

    Source: the "Step-0" arm of Heap, Lawson, Farnik and Aitchison 2025 (arXiv 2501.17727). Differs:
    they load the published checkpoint, which is one draw; this control draws anew for each model seed.
    """

    kind: Literal["init"] = "init"

    preserves: ClassVar[frozenset[str]] = frozenset({"shapes", "token_identity"})
    destroys: ClassVar[frozenset[str]] = frozenset(INVARIANTS) - {"shapes", "token_identity"}

    def apply(
        self,
        model: torch.nn.Module,
        seed: int,
        model_seed: int,
        source: ModelSpec | None = None,
        text: SampleText | None = None,
    ) -> Record:
        """Draw all parameters anew, in place; see the base class."""
        found = tensors(model)
        record = Record(notes=tie_notes(found))
        before = {t.name: _sample(t.parameter) for t in found}
        drawn = generator(seed, "init", model_seed).initial_seed()
        plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
        if not (plain and _initialized(model, drawn)):
            fresh = {t.name: t.parameter for t in tensors(_fresh(model, drawn))}
            for tensor in found:
                tensor.parameter.copy_(fresh[tensor.name])

        def change(tensor: Tensor) -> str | None:
            same = torch.equal(_sample(tensor.parameter), before[tensor.name])
            return "its initial value" if same else None

        change_all(found, record, change)
        return record


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor's entries: all of a small tensor, and every n-th of a large one.

    They are enough to tell whether initializing changed the tensor, since what is drawn differs everywhere.
    """
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLE)].clone()


def _initialized(model: Any, seed: int) -> bool:
    """Have the model initialize itself, and return whether that drew every parameter.

    It saves making a second model. All parameters are filled with NaN first, which shows what the class sets
    outside of `init_weights`, and what it believes to be initialized already.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for part in (*model.modules(), *model.parameters(), *model.buffers()):
        vars(part).pop("_is_hf_initialized", None)
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.init_weights()
    for buffer, value in buffers:
        buffer.copy_(value)
    return not any(bool(parameter.sum().isnan()) for parameter in model.parameters())


def _fresh(model: Any, seed: int) -> Any:
    """Return a new model of the same class and config, without moving the global generator."""
    logging: Any = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            return type(model)._from_config(copy.deepcopy(model.config), dtype=torch.float32)
    finally:
        logging.set_verbosity(level)

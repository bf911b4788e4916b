"""Gains of blocks with which the current token explains as much of the stream as in the trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_placebo.controls.model.base import SampleText
from sae_placebo.controls.model.block_streams import BlockStreams, Stream, component_of, seek
from sae_placebo.controls.model.gains import BlockGain
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.models.components import Component
from sae_placebo.models.diagnostics import ordinary, participation_ratio
from sae_placebo.models.hookpoints import ON_STREAM, parse_hookpoint
from sae_placebo.models.reading import Reader

_ROWS = 16
_MOST, _HALVINGS = 64.0, 14
_SHARE = 0.1
"""Share of the tolerance at which the search for a gain ends."""
_SHARED = 0.25
"""Share of the tolerance by which a hookpoint's target may lie below the path of a model that it shares."""


def n_blocks_before(hookpoint: str) -> int:
    """Return how many blocks, counted from the front, have a gain for what is read at a hookpoint."""
    place = parse_hookpoint(hookpoint)
    return place.layer + (place.site == "resid_post")


def is_on_stream(hookpoint: str) -> bool:
    """Return whether the residual stream itself is read, and not what one module reads or adds."""
    return parse_hookpoint(hookpoint).site in ON_STREAM


def stream_profile(model: torch.nn.Module, text: SampleText, n_blocks: int) -> list[Component]:
    """Return what the current token explains of the stream before the first block and behind each."""
    if n_blocks == 0:
        (x,) = read(model, text, ("resid_pre.0",)).values()
        return [component_of(x, text)]
    streams = BlockStreams(model, text, n_blocks)
    stream = streams.entered
    found = [streams.component(stream)]
    for block in range(n_blocks):
        stream = streams.run(block, stream)
        found.append(streams.component(stream))
    return found


def least_majorant(profile: Sequence[float]) -> list[float]:
    """Return the least sequence that never rises, lies nowhere below `profile`, and ends as it does."""
    found: list[float] = []
    for value in reversed(profile):
        found.append(max(value, found[-1]) if found else value)
    return found[::-1]


def shared_hookpoints(
    hookpoints: Sequence[str], profile: Sequence[float], tolerance: float
) -> tuple[tuple[str, ...], ...]:
    """Return hookpoints in groups, each of which one calibrated model can serve; the deepest ones first.

    A model's path is the least majorant of the trained profile that ends at its deepest hookpoint. It serves
    an earlier one on the stream where the path passes by its target, within a quarter of the tolerance. What
    one module reads or adds has a model of its own.

    Args:
        hookpoints: Canonical names.
        profile: What the current token explains of the trained model's stream, before and behind each block.
        tolerance: How far a hookpoint may be off.
    """
    left = [name for name in hookpoints if is_on_stream(name)]
    groups = []
    while left:
        deepest = max(n_blocks_before(name) for name in left)
        path = least_majorant(profile[: deepest + 1])

        def passes(name: str, path: list[float] = path) -> bool:
            at = n_blocks_before(name)
            return path[at] - profile[at] <= _SHARED * tolerance

        groups.append(tuple(name for name in left if passes(name)))
        left = [name for name in left if not passes(name)]
    groups += [(name,) for name in hookpoints if not is_on_stream(name)]
    return tuple(groups)


@dataclass
class Calibration:
    """What is sought for one model, and what was found.

    Attributes:
        text: What is read, and the hookpoints of the model.
        targets: What the current token explains of the trained model at each hookpoint.
        path: The same of the stream before the first block and behind each, made to fall.
        tolerance: How far a hookpoint may be off.
    """

    text: SampleText
    targets: Mapping[str, Component]
    path: list[float]
    tolerance: float

    @classmethod
    def of(cls, trained: torch.nn.Module, text: SampleText, tolerance: float) -> Calibration:
        """Return what is sought, measured on the trained model.

        Raises:
            NotEstimable: the text has too few documents or tokens.
        """
        n_blocks = max(map(n_blocks_before, text.hookpoints))
        profile = stream_profile(trained, text, n_blocks)
        found = read(trained, text, [name for name in text.hookpoints if not is_on_stream(name)])
        targets = {
            name: component_of(found[name], text)
            if name in found
            else profile[n_blocks_before(name)]
            for name in text.hookpoints
        }
        return cls(text, targets, least_majorant([one.value for one in profile]), tolerance)

    def seek(self, drawn: torch.nn.Module, blocks: Sequence[BlockGain]) -> dict[str, Any]:
        """Return what was sought, the gains that were found, what they reached, and what it cost, as JSON.

        The gains are set in the model. `reached` is of the stream behind each block, before a common factor.

        Args:
            drawn: The model, as it was drawn.
            blocks: What scales its blocks.

        Raises:
            ModelError: its blocks cannot be run one by one.
            NotEstimable: the text has too few documents or tokens.
        """
        gains, reached, n_passes = self._seek_gains(drawn, blocks)
        factor, n_forwards = 1.0, 0
        name = self.text.hookpoints[0]
        if blocks and not is_on_stream(name):
            factor, n_forwards = self._seek_factor(drawn, blocks, gains)
        gains = [factor * gain for gain in gains]
        set_gains(blocks, gains)
        n = len(blocks)
        return {
            "hookpoints": list(self.text.hookpoints),
            "gains": gains,
            "factor": factor,
            "path": self.path,
            "reached": reached,
            "values": self._at_hookpoints(drawn),
            # beside the search: two forwards of the trained model, and two of the drawn one
            "block_passes": n_passes + (n_forwards + 4) * n,
            "tokens": int(self.text.mask.sum()),
        }

    def _seek_gains(
        self, drawn: torch.nn.Module, blocks: Sequence[BlockGain]
    ) -> tuple[list[float], list[float], int]:
        """Return a gain for each block, what is reached behind each, and how many blocks were run."""
        gains: list[float] = []
        reached: list[float] = []
        if not blocks:
            return gains, reached, 0
        streams = BlockStreams(drawn, self.text, len(blocks))
        stream = streams.entered
        before = streams.component(stream).value
        for index, (block, target) in enumerate(zip(blocks, self.path[1:], strict=True)):

            def value(
                gain: float, block: BlockGain = block, index: int = index, stream: Stream = stream
            ) -> float:
                block.set(gain)
                return streams.component(streams.run(index, stream)).value

            gain, before = seek(value, before, target, self._precision, _MOST, _HALVINGS)
            block.set(gain)
            stream = streams.run(index, stream)
            gains.append(gain)
            reached.append(before)
        return gains, reached, streams.n_passes

    @property
    def _precision(self) -> float:
        return _SHARE * self.tolerance

    def _seek_factor(
        self, drawn: torch.nn.Module, blocks: Sequence[BlockGain], gains: Sequence[float]
    ) -> tuple[float, int]:
        """Return a common factor of all gains, and how many forwards it took to find it.

        It is for what one module adds, the share in which no gain of its own changes.
        """
        (name,) = self.text.hookpoints
        n_forwards = 0

        def value(factor: float) -> float:
            nonlocal n_forwards
            n_forwards += 1
            set_gains(blocks, [factor * gain for gain in gains])
            return component_of(read(drawn, self.text, (name,))[name], self.text).value

        target = self.targets[name].value
        factor, _ = seek(value, value(0.0), target, self._precision, _MOST, _HALVINGS)
        return factor, n_forwards

    def _at_hookpoints(self, made: torch.nn.Module) -> dict[str, dict[str, Any]]:
        """Return what was sought and reached at each hookpoint of the model that was made, as JSON.

        Where the target is missed by more than the tolerance, `reason` says so, and `reached` is None.
        """
        found = {}
        for name, x in read(made, self.text, self.text.hookpoints).items():
            target, kept = self.targets[name], ordinary(x, self.text.outlier_ratio)
            value = component_of(x, self.text)
            missed = abs(value.value - target.value) > self.tolerance
            found[name] = {
                "target": target.value,
                "target_error": target.error,
                "reached": None if missed else value.value,
                "nearest": value.value,
                "n": value.n,
                "pair": _or_none(x, self.text),
                "participation_ratio": participation_ratio(x[kept]),
                "norm": float(x[kept].double().norm(dim=1).mean()),
                "reason": _missed(name, target.value, value.value) if missed else None,
            }
        return found


def set_gains(blocks: Sequence[BlockGain], gains: Sequence[float]) -> None:
    """Set the gain of each block."""
    for block, gain in zip(blocks, gains, strict=True):
        block.set(gain)


def read(
    model: torch.nn.Module, text: SampleText, hookpoints: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return the activations [token d_in] of the text's tokens that count, by hookpoint."""
    if not hookpoints:
        return {}
    reader = Reader(model, hookpoints)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in reader.names}
    for start in range(0, len(text.token_ids), _ROWS):
        mask = text.mask[start : start + _ROWS]
        for name, x in reader.read(text.token_ids[start : start + _ROWS]).items():
            parts[name].append(x[mask.to(x.device)].cpu())
    return {name: torch.cat(found) for name, found in parts.items()}


def _or_none(x: torch.Tensor, text: SampleText) -> float | None:
    """Return what the previous and the current token explain together; None where too few pairs recur."""
    try:
        return component_of(x, text, previous=True).value
    except NotEstimable:
        return None


def _missed(name: str, target: float, nearest: float) -> str:
    if not n_blocks_before(name):
        return (
            f"no block lies before {name}, so there is nothing to scale: the current token explains "
            f"{nearest:.3f} there and {target:.3f} in the trained model; leave the hookpoint out"
        )
    return (
        f"no gains of its blocks make the current token explain as much as in the trained model at {name}: "
        f"{target:.3f} is sought, {nearest:.3f} is the nearest that was found"
    )

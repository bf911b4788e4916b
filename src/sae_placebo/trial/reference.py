"""This module chooses the reference placebo, and the arms and hookpoints that `use` and `audit` examine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from sae_placebo.audits.spec import AuditSpec
from sae_placebo.causal.circuits.spec import CircuitSpec
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.errors import NotEstimable, SpecError, unknown_name
from sae_placebo.latents.spec import StructureSpec
from sae_placebo.models.hookpoints import MODULE_INPUTS, parse_hookpoint
from sae_placebo.trial.arms import ArmSpec

_EMBEDDINGS = "embeddings"


@runtime_checkable
class Asking(Protocol):
    """The parts of a trial's protocol that these functions read; the protocol checks itself with them."""

    @property
    def arms(self) -> Mapping[str, ArmSpec]:
        """Return the arms by label."""

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """Return the hookpoints at which activations are read."""

    @property
    def structure(self) -> StructureSpec:
        """Return the settings that name the placebo with which latents are compared."""

    @property
    def use(self) -> UseSpec:
        """Return the settings that name the arms and hookpoints of which use is asked."""

    @property
    def circuits(self) -> CircuitSpec:
        """Return the settings that name the arms of which ties to circuitry are asked."""

    @property
    def audit(self) -> AuditSpec:
        """Return the settings that name the arms and hookpoints that are audited."""

    @property
    def trained_arm(self) -> str:
        """Return the label of the reference model's arm."""


def reference_placebo(spec: Asking) -> str:
    """Return the label of the arm with which latents are compared, one by one.

    Raises:
        NotEstimable: no arm re-draws the weights of the model alone.
        SpecError: the one that is asked for does not exist or cannot serve.
    """
    asked = spec.structure.placebo
    if asked is not None:
        if asked not in spec.arms:
            raise SpecError(f"structure.placebo: {unknown_name('arm', asked, spec.arms)}")
        if not _serves(spec.arms[asked]):
            raise SpecError(
                f"structure.placebo is {asked!r}, which does not re-draw the weights of the model "
                "alone: name an arm with a drawn control and neither data nor dictionary"
            )
        return asked
    able = [arm for arm, one in spec.arms.items() if _serves(one)]
    if not able:
        raise NotEstimable("no arm re-draws the weights of the model alone")

    def rank(arm: str) -> tuple[bool, bool, bool, bool]:
        control = spec.arms[arm].control
        drawn = control.drawn
        kept = getattr(drawn, "keep", ())
        easy = not control.is_fair
        return control.ablates_attention, easy, drawn.kind != "redraw", _EMBEDDINGS not in kept

    return min(able, key=rank)


def _serves(arm: ArmSpec) -> bool:
    every_layer = {"block_weights", "other_layers"} <= arm.control.drawn.destroyed()
    return arm.control.draws and every_layer and arm.data is None and arm.dictionary is None


def re_draws(spec: Asking) -> dict[bool, str]:
    """Return the placebo that keeps the embeddings, and the one that does not, by whether it keeps them.

    These are re-draws of every layer's weights and of nothing but the model; the reference placebo comes
    first. A kind that the trial lacks is left out.
    """
    able = [arm for arm, one in spec.arms.items() if _serves(one)]
    if able:
        reference = reference_placebo(spec)
        able.sort(key=lambda arm: arm != reference)
    found: dict[bool, str] = {}
    for arm in able:
        control = spec.arms[arm].control
        if not control.ablates_attention:
            found.setdefault(_EMBEDDINGS in getattr(control.drawn, "keep", ()), arm)
    return found


def tie_arms(spec: Asking) -> tuple[str, ...]:
    """Return the arms whose latents are asked whether they are tied to circuitry.

    Raises:
        SpecError: as in `asked_arms`.
    """
    asked = spec.circuits.arms
    if asked is None:
        asked = (spec.trained_arm, *re_draws(spec).values()) if asked_arms(spec, "use") else ()
    return checked(spec, "circuits", asked)


def asked_arms(spec: Asking, table: Literal["use", "audit"]) -> tuple[str, ...]:
    """Return the arms whose models `use` or `audit` examines: those named, or trained and placebo.

    Raises:
        SpecError: one that is named does not exist, or no model reads its activations.
    """
    asked = getattr(spec, table).arms
    if asked is None:
        try:
            asked = (spec.trained_arm, reference_placebo(spec))
        except NotEstimable:
            asked = (spec.trained_arm,)
    return checked(spec, table, asked)


def checked(spec: Asking, table: str, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return arms whose models are asked, each once.

    Raises:
        SpecError: one does not exist, or no model reads its activations.
    """
    for arm in asked:
        if arm not in spec.arms:
            raise SpecError(f"{table}.arms: {unknown_name('arm', arm, spec.arms)}")
        data = spec.arms[arm].data
        if data is not None and data.of_activations:
            raise SpecError(
                f"{table}.arms holds {arm!r}, whose activations are drawn: no model goes on from them; "
                "leave it out"
            )
    return tuple(dict.fromkeys(asked))


def module_inputs(hookpoints: Sequence[str]) -> tuple[str, ...]:
    """Return the hookpoints at which a module's input is read, which is no part of the residual stream."""
    return tuple(name for name in hookpoints if parse_hookpoint(name).site in MODULE_INPUTS)


def asked_hookpoints(spec: Asking, table: Literal["use", "audit"]) -> tuple[str, ...]:
    """Return the hookpoints at which `use` or `audit` examines SAEs.

    Raises:
        SpecError: one that is named is none of the trial's.
    """
    asked: tuple[str, ...] | None = getattr(spec, table).hookpoints
    if asked is None:
        return spec.hookpoints
    for name in asked:
        if name not in spec.hookpoints:
            wrong = unknown_name("hookpoint", name, spec.hookpoints)
            raise SpecError(f"{table}.hookpoints: {wrong}")
    return asked

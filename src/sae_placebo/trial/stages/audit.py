"""The stage that asks where an SAE misleads: every audit of one SAE."""

from __future__ import annotations

import functools
from collections.abc import Callable

from sae_placebo.audits import AUDITS
from sae_placebo.audits.base import Audited, Case, audit, refused
from sae_placebo.causal.use.base import Subject
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.data.labels.truth import TokenLabels
from sae_placebo.latents.base import Encoded, TokenTable
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.failures import Failure, Failures, write_refusal
from sae_placebo.trial.plan import Place
from sae_placebo.trial.tables.audit import write_audited


def audit_sae(
    artefacts: Artefacts, place: Place, model: Callable[[], Downstream], failures: Failures
) -> None:
    """Make every audit of one SAE and write its findings; those that cannot be made say why.

    Args:
        artefacts: Of the trial.
        place: The SAE.
        model: Returns the arm's model from the SAE's hookpoint on; where it cannot, audits that ask the
            model are refused with its reason.
        failures: Keeps what goes wrong.
    """
    one, hookpoint, sae, _ = place
    where, progress = f"{one.label}, {hookpoint}, {sae}", artefacts.progress
    failed, behind = list[Failure](), list[Downstream]()
    why = failures.attempt(f"audit: {where}", lambda: behind.append(model()))
    case = _case(artefacts, place, behind[0] if behind else None, why.reason if why else "")
    with artefacts.store.write(artefacts.plan.audit[place]) as draft:
        found: dict[str, Audited] = {}
        for name in AUDITS:
            with progress.track(f"audit {name}: {where}", 1, "audit") as advance:
                failure = failures.attempt(
                    f"audit {name}: {where}", functools.partial(_make, case, name, found)
                )
                if failure is not None:
                    found[name] = refused(name, failure.reason)
                    failed.append(failure)
                advance(1)
        write_audited(draft, found)
        if why is not None and why.is_fault:
            failed.append(why)
        if any(failure.is_fault for failure in failed):
            reasons = [failure.reason for failure in failed]
            write_refusal(draft, "; ".join(reasons), is_fault=True)


def _case(artefacts: Artefacts, place: Place, behind: Downstream | None, no_subject: str) -> Case:
    encoded, materials = artefacts.encoded(place), artefacts.materials
    return Case(
        reading=encoded,
        subject=Subject(behind, encoded.tokens, encoded.activations) if behind else None,
        no_subject=no_subject,
        labels=_labels(artefacts, encoded.tokens),
        others=_others(artefacts, place),
        spec=artefacts.spec.audit,
        seed=artefacts.spec.seed,
        letters=materials.readability is None,
        track=artefacts.progress.track,
    )


def _make(case: Case, name: str, found: dict[str, Audited]) -> None:
    found |= audit(case, (name,))


def _others(artefacts: Artefacts, place: Place) -> dict[str, Encoded]:
    """Return the other SAEs of the same activations, by architecture and seed."""
    others = [p for p in artefacts.plan.measure if p[:2] == place[:2] and p != place]
    return {f"{p[2]}, seed {p[3]}": artefacts.encoded(p) for p in others}


def _labels(artefacts: Artefacts, tokens: TokenTable) -> TokenLabels | None:
    readability = artefacts.materials.readability
    if readability is None or tokens.labels is None:
        return None
    return readability.truth(tokens.labels, tokens.places)

"""A job that asks an arm's model about the latents of one SAE writes the answer, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae_placebo.causal.use.base import Subject
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.progress import Track
from sae_placebo.core.store import Step
from sae_placebo.latents.base import Encoded
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.failures import Failures, write_refusal
from sae_placebo.trial.plan import Place


def answer(
    artefacts: Artefacts,
    steps: Mapping[Place, Step],
    place: Place,
    model: Callable[[], Downstream],
    failures: Failures,
    work: Callable[[Subject, Encoded, Path, Track], None],
) -> None:
    """Ask about one SAE, and write the answer or why there is none.

    Args:
        artefacts: Of the trial.
        steps: Those of the stage.
        place: The SAE.
        model: Returns the model from the SAE's hookpoint on; where it cannot, that is the answer.
        failures: Keeps what goes wrong.
        work: It is called with the model behind the hookpoint, the SAE on the held-out tokens, the folder to
            write to, and what shows progress.
    """
    label = f"{place[0].label}, {', '.join(place[1:3])}"

    def track(what: str, total: int, unit: str) -> Any:
        return artefacts.progress.track(f"{what}: {label}", total, unit)

    with artefacts.store.write(steps[place]) as draft:

        def job() -> None:
            encoded = artefacts.encoded(place)
            subject = Subject(model(), encoded.tokens, encoded.activations)
            work(subject, encoded, draft, track)

        failure = failures.attempt(f"{steps[place].stage}: {label}", job)
        if failure is not None:
            write_refusal(draft, *failure)

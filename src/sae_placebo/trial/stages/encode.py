"""Every SAE encodes the text that ladders are fitted on; nothing is measured on it."""

from __future__ import annotations

import functools

import numpy as np

from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance
from sae_placebo.core.workers import Workers
from sae_placebo.latents.code_files import write_codes
from sae_placebo.models.activation_files import read_activations
from sae_placebo.saes import Codes
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import Place

_CHUNK_TOKENS = 8_192


def encode_saes(artefacts: Artefacts) -> None:
    """Encode the text to fit on with every SAE that was not, as many at a time as there are threads."""
    store, plan = artefacts.store, artefacts.plan
    left = {step.key: place for place, step in plan.encode.items() if not store.find(step)}
    if not left:
        return
    n = len(artefacts.to_fit_on[artefacts.spec.hookpoints[0]].usable)
    label = f"encode text to fit on with {len(left)} SAEs"
    with artefacts.progress.track(label, n * len(left)) as advance, Workers() as workers:
        jobs = [functools.partial(_encode, artefacts, place, advance) for place in left.values()]
        for _ in workers.each(jobs):
            pass


def _encode(artefacts: Artefacts, place: Place, advance: Advance) -> None:
    """Write one SAE's codes of the tokens that no arm leaves out."""
    from scipy.sparse import csr_matrix

    one, hookpoint, *_ = place
    plan, store, sae = artefacts.plan, artefacts.store, artefacts.sae(place)
    usable = torch.from_numpy(artefacts.to_fit_on[hookpoint].usable)
    # read anew and mapped, so that no copy of the whole is made
    activations = read_activations(store.path(plan.fit_text[one]), hookpoint)
    with store.write(plan.encode[place]) as draft:
        parts: list[Codes] = []
        for first in range(0, len(usable), _CHUNK_TOKENS):
            chunk = slice(first, first + _CHUNK_TOKENS)
            parts.append(sae.encode(activations[chunk][usable[chunk]]))
            advance(len(usable[chunk]))
        codes = Codes.concatenate(parts)
        entries = (codes.values.numpy(), codes.latents.numpy().astype(np.int32))
        shape = int(usable.sum()), sae.d_sae
        write_codes(draft, csr_matrix((*entries, codes.offsets.numpy()), shape=shape))

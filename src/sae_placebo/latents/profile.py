"""All that is said about the latents of one SAE: statistics, partners, ladder, class, verdict.

One pass of each statistic over the codes that `measurement` left; the numbers about the SAE that come
of them have one value with each group of documents left out, and from these the same bootstrap replicates
as every other metric.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas, torch
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.latents.base import Columns, Encoded, Folds, Placebo
from sae_placebo.latents.classes.classification import (
    CLASS_NAMES,
    decide,
    is_arbitrary,
    not_estimable,
)
from sae_placebo.latents.classes.sensitivity import sensitivity
from sae_placebo.latents.columns.attributes import attributes
from sae_placebo.latents.columns.domains import Domains
from sae_placebo.latents.columns.geometry import geometry
from sae_placebo.latents.columns.in_context import in_context
from sae_placebo.latents.columns.ngrams import ngrams
from sae_placebo.latents.columns.nonlinear import MLPSpec, nonlinear_aurocs
from sae_placebo.latents.columns.outputs import outputs
from sae_placebo.latents.columns.positions import positions
from sae_placebo.latents.columns.repeats import induction
from sae_placebo.latents.columns.subsets import subsets
from sae_placebo.latents.ladder.ladder import Ladder, ladder, no_ladder
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.measurement import MeasurementSpec
from sae_placebo.latents.metrics import Evidence, latent_table, token_statistics
from sae_placebo.latents.metrics import structure as structure_metrics
from sae_placebo.latents.origin.rule import ORIGINS, verdicts
from sae_placebo.latents.partners.assignment import Sharing
from sae_placebo.latents.partners.partners import (
    Partners,
    best_partners,
    has_partner,
    null_has_partner,
)
from sae_placebo.latents.passages import passages
from sae_placebo.latents.spec import StructureSpec

PARTS = 5
"""Parts of the work on one SAE that `profile` tells of."""


@dataclass(frozen=True, eq=False)
class Around:
    """What stands around an SAE that is profiled.

    Attributes:
        placebo: What it is held against; None where there is none.
        sibling: Codes of the SAE of another seed on the same tokens; None where there is none.
        shared: What it has in common with that SAE by their directions; None where there is none.
        repeats: Its codes on fresh and on repeated random blocks; None where no model was read.
        unembedding: W_U of the arm's model; None where it has none.
        embedding: W_E of the trained model; None where it has none.
        readouts: What the ladder reads of the tokens and of the placebo's activations; None: there are
            too few documents.
        whole: [rung, fold] the ladder of the activations themselves.
        domains: Recognizable contexts of the tokens.
        reasons: Why there is no `placebo`, `sibling`, `repeats` or `ladder`.
    """

    placebo: Placebo | None
    sibling: Any | None
    shared: Sharing | None
    repeats: tuple[Any, Any] | None
    unembedding: Float[torch.Tensor, "vocabulary d_in"] | None
    embedding: Float[np.ndarray, "vocabulary d_embed"] | None
    readouts: Readouts | None
    whole: Float[np.ndarray, "rung fold"] | None
    domains: Domains
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """Tables about the latents of one SAE.

    Attributes:
        latents: One row per latent: its statistics, class, verdict and evidence.
        measurements: One row per metric: metric, value, unit, null_value, n, reason.
        replicates: metric -> [replicate] values under resampled documents; 0 is the point estimate.
        passages: Top activating passages of latents drawn to be shown.
        sensitivity: How many latents change class as a threshold moves.
    """

    latents: Any
    measurements: Any
    replicates: dict[str, Float[np.ndarray, " replicate"]]
    passages: Any
    sensitivity: Any


def profile(
    reading: Encoded,
    folds: Folds,
    around: Around,
    weights: Float[np.ndarray, "document replicate"],
    spec: StructureSpec,
    shown: MeasurementSpec,
    seed: int,
    advance: Advance = unheard,
) -> Profile:
    """Return everything said about the latents of one SAE.

    Args:
        reading: The SAE on the held-out tokens.
        folds: Groups of documents.
        around: What it is held against.
        weights: Document multiplicities; column 0 is ones.
        spec: What counts as a partner, and as explained.
        shown: Thresholds of the classes, and how many latents are shown.
        seed: The trial's.
        advance: Told of each of `PARTS` parts of the work.
    """
    evidence = _evidence(reading, shown)
    climbed = _climbed(reading, folds, around, spec, seed)
    advance(1)
    rungs = dict(zip(climbed.rungs, climbed.r2, strict=True))
    in_placebo, in_sibling = _partners(reading, folds, around, spec, seed)
    advance(1)
    columns, attribute = _columns(reading, folds, around, shown, evidence)
    advance(1)
    columns |= climbed.solo | {"placebo_r": in_placebo.r, "seed_r": in_sibling.r}
    columns |= {f"r2_{name}": r2 for name, r2 in rungs.items() if f"r2_{name}" not in columns}
    columns["r2_placebo"] = rungs["placebo_latents"]  # the whole ladder
    classes = decide(columns, shown.thresholds)
    judged = columns["n_active"] >= shown.thresholds.min_firings
    found = verdicts(
        judged,
        rungs,
        in_placebo.has,
        in_sibling.has,
        spec.explained,
        _reasons(around, in_placebo, in_sibling),
    )
    latents = latent_table(evidence, folds.weights)
    latents.insert(1, "class", np.array(CLASS_NAMES, dtype=object)[classes[:, 0]])
    latents["origin"] = np.array(ORIGINS, dtype=object)[found.verdict[:, 0]]
    latents["evidence"], latents["attribute"] = found.evidence, attribute
    for name in sorted(set(columns) - set(latents.columns)):
        latents[name] = columns[name][:, 0].astype(np.float64)
    latents["is_arbitrary"] = is_arbitrary(columns, shown.thresholds)[:, 0]
    candidates = np.flatnonzero(np.isfinite(columns["domain_auc"][:, 0]))
    # of the same domain as `domain_auc`
    mlp = MLPSpec(precision=shown.thresholds.domain_precision)
    latents["mlp_auc"] = nonlinear_aurocs(
        reading, folds, around.domains, candidates, around.embedding, seed, mlp
    )
    advance(1)
    for name, partners in (("placebo", in_placebo), ("seed", in_sibling)):
        latents[f"{name}_partner"], latents[f"{name}_null_r"] = partners.partner, partners.null
        latents[f"has_{name}_partner"] = partners.column()
        latents[f"null_has_{name}_partner"] = partners.null_has
    shared = around.shared
    latents["shared"] = np.nan if shared is None else shared.shared.astype(np.float64)
    missing = not_estimable(columns, shown.thresholds)
    numbers = structure_metrics.numbers(
        classes, found, climbed, in_placebo, in_sibling, judged, missing
    )
    numbers |= structure_metrics.of_sharing(shared, 1 + folds.n_groups, in_sibling.reason)
    made = Profile(
        latents,
        *_measured(numbers, folds, weights, len(reading.tokens)),
        passages(reading, latents, shown, seed),
        sensitivity(columns, shown.thresholds),
    )
    advance(1)
    return made


def _climbed(
    reading: Encoded, folds: Folds, around: Around, spec: StructureSpec, seed: int
) -> Ladder:
    """Return the ladder, with the reasons that are known of what it lacks."""
    if around.readouts is None or around.whole is None:
        reason = around.reasons.get("ladder", "no features were read off the tokens")
        return no_ladder(reading.d_sae, 1 + folds.n_groups, reason)
    found = ladder(
        reading,
        folds,
        None,
        around.placebo,
        seed,
        spec.ladder,
        readouts=around.readouts,
        whole=around.whole,
    )
    known = {rung: around.reasons.get("placebo", why) for rung, why in found.reasons.items()}
    return dataclasses.replace(found, reasons=known)


def _evidence(reading: Encoded, shown: MeasurementSpec) -> Evidence:
    """Return what the token statistics read; nothing about reconstruction."""
    tokens, codes = reading.tokens, reading.codes
    nothing = np.zeros(tokens.n_documents)
    return Evidence(
        token_ids=tokens.ids,
        documents=tokens.documents,
        n_documents=tokens.n_documents,
        offsets=codes.indptr.astype(np.int64),
        latents=codes.indices,
        values=codes.data,
        d_sae=reading.d_sae,
        vocabulary=tokens.vocabulary,
        squared_error=nothing,
        activation_sum=nothing[:, None],
        activation_energy=nothing,
        thresholds=shown.thresholds,
    )


def _columns(
    reading: Encoded, folds: Folds, around: Around, shown: MeasurementSpec, evidence: Evidence
) -> tuple[Columns, Shaped[np.ndarray, " latent"]]:
    """Return the statistics that need neither partner nor ladder, and each latent's best attribute."""
    spelled, names = attributes(reading, folds)
    tokens = token_statistics(evidence, folds.weights).columns
    found: Columns = {name: values.astype(np.float64) for name, values in tokens.items()}
    found |= geometry(reading, folds) | ngrams(reading, folds) | positions(reading, folds)
    found |= spelled | outputs(reading, folds, around.unembedding)
    found |= subsets(reading, folds, around.domains, shown.thresholds, around.embedding)
    found |= in_context(reading, folds, around.embedding)
    if around.repeats is not None:
        found |= induction(*around.repeats, folds)
    return found, np.array(names, dtype=object)


def _reasons(
    around: Around, in_placebo: FoundPartners, in_sibling: FoundPartners
) -> dict[str, str]:
    """Return why there are no partners to find; also where there is an SAE to look in."""
    found = {"placebo": in_placebo.reason, "sibling": in_sibling.reason}
    return dict(around.reasons) | {name: why for name, why in found.items() if why is not None}


@dataclass(frozen=True, eq=False)
class FoundPartners:
    """Partners of an SAE's latents in one other SAE, or why there are none to find.

    Attributes:
        r: [latent, fold] correlation with the best partner; NaN where there is none.
        has: [latent, fold] whether it is one; None where there is no other SAE.
        partner: [latent] index of the partner, null where there is none.
        null: [latent] best correlation with tokens moved in time.
        null_has: [latent] whether that would be a partner; NaN where it cannot be told.
        reason: Why `has` is None.
    """

    r: Float[np.ndarray, "latent fold"]
    has: Any
    partner: Any
    null: Float[np.ndarray, " latent"]
    null_has: Float[np.ndarray, " latent"]
    reason: str | None = None

    def column(self) -> Float[np.ndarray, " latent"]:
        """Return 1 for latents with a partner, 0 for others, NaN where there is none to find."""
        if self.has is None:
            return np.full(len(self.null), np.nan)
        return np.where(np.isfinite(self.r[:, 0]), self.has[:, 0].astype(np.float64), np.nan)


def _partners(
    reading: Encoded, folds: Folds, around: Around, spec: StructureSpec, seed: int
) -> tuple[FoundPartners, FoundPartners]:
    """Return the partners in the placebo SAE, and in the SAE of another seed."""
    placebo = None if around.placebo is None else around.placebo.codes
    others = {"placebo": placebo, "sibling": around.sibling}
    one, other = (
        _found(reading, folds, codes, spec, seed, around.reasons.get(name, "not given"))
        for name, codes in others.items()
    )
    return one, other


def _found(
    reading: Encoded, folds: Folds, codes: Any | None, spec: StructureSpec, seed: int, reason: str
) -> FoundPartners:
    shape = (reading.d_sae, 1 + folds.n_groups)
    nothing = np.full(shape, np.nan)
    none = pandas.array([None] * shape[0], "Int64")
    if codes is None:
        return FoundPartners(nothing, None, none, nothing[:, 0], nothing[:, 0], reason)
    partners: Partners = best_partners(
        reading.by_latent, codes, reading.tokens.documents, folds, spec.partners, seed
    )
    index = pandas.array(np.where(partners.partner < 0, 0, partners.partner), "Int64")
    index[partners.partner < 0] = None
    r, null = partners.correlation, partners.shifted
    try:
        has = has_partner(partners, spec.partners) == 1
        null_has = null_has_partner(partners, spec.partners)
    except NotEstimable as refusal:
        return FoundPartners(r, None, index, null, nothing[:, 0], str(refusal))
    return FoundPartners(r, has, index, null, null_has)


def _measured(
    numbers: Mapping[str, structure_metrics.Number],
    folds: Folds,
    weights: Float[np.ndarray, "document replicate"],
    n_tokens: int,
) -> tuple[Any, dict[str, Float[np.ndarray, " replicate"]]]:
    """Return the table of metrics, and their values under the document weights."""
    rows, replicates = [], {}
    for name, number in numbers.items():
        declared = structure_metrics.DECLARED[name]
        value = None
        if number.values is not None and np.isfinite(number.values[0]):
            replicates[name] = folds.replicates(number.values, weights)
            value = float(number.values[0])
        reason = None if value is not None else number.reason or "undefined on these tokens"
        rows.append([name, value, declared.unit, number.null_value, n_tokens, reason])
    columns = ["metric", "value", "unit", "null_value", "n", "reason"]
    return pandas.DataFrame(rows, columns=columns), replicates

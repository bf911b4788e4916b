"""All that is known about the latents of one SAE: statistics, partners, ladder, class and verdict.

Each statistic passes once over the codes that `measurement` left. The numbers about the SAE that are made of
the statistics have one value with each group of documents left out, and from these values bootstrap
replicates are made on the same documents as those of every other metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas, torch
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.latents.base import Columns, Encoded, Folds
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
from sae_placebo.latents.columns.repeats import induction, no_induction
from sae_placebo.latents.columns.subsets import subsets
from sae_placebo.latents.ladder.ladder import Ladder
from sae_placebo.latents.measurement import COLUMNS, MeasurementSpec
from sae_placebo.latents.metrics import Evidence, latent_table, token_statistics
from sae_placebo.latents.metrics import structure as structure_metrics
from sae_placebo.latents.metrics.base import Number
from sae_placebo.latents.metrics.ladder_shares import LatentFacts, ladder_shares
from sae_placebo.latents.metrics.replicated import (
    crossed_shares,
    described_share,
    named_shares,
)
from sae_placebo.latents.metrics.structure import WITHOUT_LADDER, class_shares
from sae_placebo.latents.metrics.tokens import token_evidence
from sae_placebo.latents.origin.rule import ORIGINS, Verdicts, verdicts
from sae_placebo.latents.partners.assignment import Sharing
from sae_placebo.latents.partners.partners import (
    Partners,
    best_partners,
    has_partner,
    null_has_partner,
)
from sae_placebo.latents.passages import passages
from sae_placebo.latents.rules.rules import Rules, RuleText, describe
from sae_placebo.latents.spec import StructureSpec

PARTS = 4
"""Number of parts of the work on one SAE, each of which `profile` reports to `advance`."""


@dataclass(frozen=True, eq=False)
class Around:
    """What an SAE that is profiled is compared with, and what else is known of its model and tokens.

    Attributes:
        ladder: The SAE on the ladder.
        placebo: Codes of the placebo's SAE on the same tokens; None where there is none.
        rates: Ends of bins of how often the trained arm's latents fire; None where that is not known.
        sibling: Codes of the SAE of another seed on the same tokens; None where there is none.
        shared: What the SAE has in common with its sibling by their directions; None where there is none.
        repeats: The SAE's codes on fresh and on repeated random blocks; None where no model was read.
        unembedding: W_U of the arm's model; None where it has none.
        embedding: W_E of the trained model; None where it has none.
        domains: Recognizable contexts of the tokens.
        rules: The text that rules are built and scored on; None where there is none.
        fit: The SAE's codes on the text to fit on, CSR [token, d_sae].
        reasons: Why there is no `placebo`, `sibling`, `repeats` or `rules`.
    """

    ladder: Ladder
    placebo: Any | None
    rates: Float[np.ndarray, " inner_end"] | None
    sibling: Any | None
    shared: Sharing | None
    repeats: tuple[Any, Any] | None
    unembedding: Float[torch.Tensor, "vocabulary d_in"] | None
    embedding: Float[np.ndarray, "vocabulary d_embed"] | None
    domains: Domains
    rules: RuleText | None = None
    fit: Any = None
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """Tables about the latents of one SAE.

    Attributes:
        latents: One row per latent, with its statistics, class, verdict and evidence.
        measurements: One row per metric, with the columns of `measurement.COLUMNS`.
        replicates: Values of each metric under resampled documents, [replicate]; 0 is the point estimate.
        passages: Top activating passages of the latents that were drawn to be shown.
        sensitivity: How many latents change class as a threshold moves.
        curve: One row per number that hangs on the ladder and portion of the text that it is fitted on.
    """

    latents: Any
    measurements: Any
    replicates: dict[str, Float[np.ndarray, " replicate"]]
    passages: Any
    sensitivity: Any
    curve: Any


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
    """Return all tables about the latents of one SAE.

    Args:
        reading: The SAE on the held-out tokens.
        folds: Groups of documents.
        around: What the SAE is compared with, and what else is known.
        weights: Document multiplicities; column 0 is ones.
        spec: What counts as a partner, and as explained.
        shown: Thresholds of the classes, and how many latents are shown.
        seed: The trial's.
        advance: Called with 1 after each of the `PARTS` parts of the work.
    """
    evidence = token_evidence(reading, shown.thresholds)
    climbed = around.ladder
    in_placebo, in_sibling = _partners(reading, folds, around, spec, seed)
    advance(1)
    columns, attribute = statistics(
        reading, evidence, folds, around.domains, around.unembedding, around.embedding
    )
    columns |= (
        no_induction(reading.d_sae, folds)
        if around.repeats is None
        else induction(*around.repeats, folds)
    )
    advance(1)
    columns |= climbed.columns() | {"placebo_r": in_placebo.r, "seed_r": in_sibling.r}
    of_portions = [columns | climbed.columns(p) for p in range(len(climbed.by_portion))]
    classes = [decide(one, shown.thresholds) for one in of_portions]
    judged = columns["n_active"] >= shown.thresholds.min_firings
    facts = LatentFacts(judged, columns["n_active"][:, 0], in_placebo, in_sibling, around.rates)
    origins = _origins(facts, climbed, spec.explained, around.reasons)
    latents = latent_table(evidence, folds.weights)
    latents.insert(1, "class", np.array(CLASS_NAMES, dtype=object)[classes[-1][:, 0]])
    latents["origin"] = np.array(ORIGINS, dtype=object)[origins[-1].verdict[:, 0]]
    latents["evidence"], latents["attribute"] = (
        origins[-1].evidence,
        np.array(attribute, dtype=object),
    )
    for name in sorted(set(columns) - set(latents.columns)):
        latents[name] = columns[name][:, 0].astype(np.float64)
    latents["is_arbitrary"] = is_arbitrary(columns, shown.thresholds)[:, 0]
    candidates = np.flatnonzero(np.isfinite(columns["domain_auc"][:, 0]))
    # the domain must be the one that `domain_auc` is about
    mlp = MLPSpec(precision=shown.thresholds.domain_precision)
    latents["mlp_auc"] = nonlinear_aurocs(
        reading, folds, around.domains, candidates, around.embedding, seed, mlp
    )
    advance(1)
    _add_partners(latents, in_placebo, in_sibling, around.shared)
    rules = _rules(reading, folds, around, in_sibling, spec)
    _add_rules(latents, rules)
    described = rules.f1 >= spec.rules.f1
    why = in_sibling.reason or (None if around.rules else around.reasons.get("rules", "not given"))
    by_portion = []
    for portion, verdict in enumerate(origins):
        missing = not_estimable(of_portions[portion], shown.thresholds)
        by_portion.append(
            ladder_shares(facts, climbed, portion, verdict, spec.explained)
            | class_shares(classes[portion], missing)
            | crossed_shares(classes[portion], missing, in_sibling.has, in_sibling.reason)
            | named_shares(classes[portion], missing, in_sibling.has, described, why)
        )
    numbers = structure_metrics.partner_shares(in_placebo, in_sibling) | by_portion[-1]
    numbers |= described_share(in_sibling.has, described, why)
    numbers |= structure_metrics.of_sharing(around.shared, 1 + folds.n_groups, in_sibling.reason)
    measured, replicates = _measured(numbers, folds, weights, len(reading.tokens))
    curve, of_curve = _curve(by_portion, climbed, folds, weights)
    tables = Profile(
        latents,
        measured,
        replicates | of_curve,
        passages(reading, latents, shown, seed),
        sensitivity(columns, shown.thresholds),
        curve,
    )
    advance(1)
    return tables


def statistics(
    reading: Encoded,
    evidence: Evidence,
    folds: Folds,
    domains: Domains,
    unembedding: Float[torch.Tensor, "vocabulary d_in"] | None,
    embedding: Float[np.ndarray, "vocabulary d_embed"] | None,
) -> tuple[Columns, list[str | None]]:
    """Return the statistics of each latent that need neither partner nor ladder, and its best attribute.

    Args:
        reading: The SAE on the held-out tokens.
        evidence: What `token_evidence` returns for it, with the thresholds of the classes.
        folds: Groups of documents.
        domains: Recognizable contexts of the tokens.
        unembedding: W_U of the arm's model; None where it has none.
        embedding: W_E of the trained model; None where it has none.
    """
    spelled, names = attributes(reading, folds)
    columns = token_statistics(evidence, folds.weights).columns
    columns |= geometry(reading, folds) | ngrams(reading, folds) | positions(reading, folds)
    columns |= spelled | outputs(reading, folds, unembedding)
    columns |= subsets(reading, folds, domains, evidence.thresholds, embedding)
    return columns | in_context(reading, folds, embedding), names


def _origins(
    facts: LatentFacts, climbed: Ladder, explained: float, reasons: Mapping[str, str]
) -> list[Verdicts]:
    """Return the verdict on every latent, from each portion of the text to fit on.

    A reason of the search for partners goes before one of `reasons`.
    """
    searched = {"placebo": facts.in_placebo.reason, "sibling": facts.in_sibling.reason}
    why = dict(reasons) | {name: one for name, one in searched.items() if one is not None}
    return [
        verdicts(
            facts.judged,
            dict(zip(climbed.rungs, r2, strict=True)),
            facts.in_placebo.has,
            facts.in_sibling.has,
            explained,
            why,
        )
        for r2 in climbed.by_portion
    ]


@dataclass(frozen=True, eq=False)
class FoundPartners:
    """Partners of an SAE's latents in one other SAE, or the reason why there are none.

    Attributes:
        r: [latent, fold] correlation with the best candidate; NaN where there is none.
        has: [latent, fold] whether the candidate is a partner; None where that cannot be decided.
        partner: [latent] index of the candidate, null where there is none.
        null: [latent] correlation with the best candidate when tokens are moved in time.
        null_has: [latent] whether that candidate would count as a partner; NaN where that is unknown.
        reason: Why `has` is None.
    """

    r: Float[np.ndarray, "latent fold"]
    has: Any
    partner: Any
    null: Float[np.ndarray, " latent"]
    null_has: Float[np.ndarray, " latent"]
    reason: str | None = None

    def column(self) -> Float[np.ndarray, " latent"]:
        """Return 1 for latents with a partner and 0 for others, NaN where that is unknown."""
        if self.has is None:
            return np.full(len(self.null), np.nan)
        return np.where(np.isfinite(self.r[:, 0]), self.has[:, 0].astype(np.float64), np.nan)


def _add_partners(
    latents: Any, in_placebo: FoundPartners, in_sibling: FoundPartners, shared: Sharing | None
) -> None:
    """Write the partners, and what is shared with the sibling, into the table of latents."""
    for name, partners in (("placebo", in_placebo), ("seed", in_sibling)):
        latents[f"{name}_partner"], latents[f"{name}_null_r"] = partners.partner, partners.null
        latents[f"has_{name}_partner"] = partners.column()
        latents[f"null_has_{name}_partner"] = partners.null_has
    latents["shared"] = np.nan if shared is None else shared.shared.astype(np.float64)


def _rules(
    reading: Encoded, folds: Folds, around: Around, in_sibling: FoundPartners, spec: StructureSpec
) -> Rules:
    """Return the rules of the latents that the SAE of another seed has too."""
    n, n_folds = reading.d_sae, 1 + folds.n_groups
    if in_sibling.has is None:
        return Rules.none(n, n_folds, in_sibling.reason or "not known to be replicated")
    if around.rules is None:
        return Rules.none(n, n_folds, around.reasons.get("rules", "not given"))
    replicated = np.flatnonzero(in_sibling.column() == 1)
    return describe(reading.codes, around.fit, replicated, around.rules, folds, spec.rules)


def _add_rules(latents: Any, rules: Rules) -> None:
    """Write the rules and their scores into the table of latents."""
    latents["rule"] = np.array(rules.text, dtype=object)
    latents["rule_reason"] = np.array(rules.reason, dtype=object)
    latents["rule_bits"], latents["rule_saved_bits"] = rules.bits, rules.saved
    for name in ("precision", "recall", "f1"):
        latents[f"rule_{name}"] = getattr(rules, name)[:, 0]


def _partners(
    reading: Encoded, folds: Folds, around: Around, spec: StructureSpec, seed: int
) -> tuple[FoundPartners, FoundPartners]:
    """Return the partners in the placebo SAE, and in the SAE of another seed."""
    others = {"placebo": around.placebo, "sibling": around.sibling}
    in_placebo, in_sibling = (
        _partners_in(reading, folds, codes, spec, seed, around.reasons.get(name, "not given"))
        for name, codes in others.items()
    )
    return in_placebo, in_sibling


def _partners_in(
    reading: Encoded, folds: Folds, codes: Any | None, spec: StructureSpec, seed: int, reason: str
) -> FoundPartners:
    """Return the partners among the latents of the SAE with these codes, or `reason` where it has none."""
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
    numbers: Mapping[str, Number],
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
    return pandas.DataFrame(rows, columns=list(COLUMNS)), replicates


def _curve(
    by_portion: Sequence[Mapping[str, Number]],
    climbed: Ladder,
    folds: Folds,
    weights: Float[np.ndarray, "document replicate"],
) -> tuple[Any, dict[str, Float[np.ndarray, " replicate"]]]:
    """Return what hangs on the ladder by portion of its text, and the values under the document weights.

    The values of portion p go by the number's name, "@" and p.
    """
    rows, replicates = [], {}
    for portion, numbers in enumerate(by_portion):
        size = climbed.fit_tokens[portion], climbed.fit_documents[portion]
        hang = {name: one for name, one in numbers.items() if name not in WITHOUT_LADDER}
        for name, (values, _, reason) in hang.items():
            value = None
            if values is not None and np.isfinite(values[0]):
                replicates[f"{name}@{portion}"] = folds.replicates(values, weights)
                value = float(values[0])
            why = None if value is not None else reason or "undefined on these tokens"
            rows.append([name, portion, *size, value, why])
    names = ["metric", "portion", "fit_tokens", "fit_documents", "value", "reason"]
    return pandas.DataFrame(rows, columns=names), replicates

"""A short rule for each latent that is found again in another seed: what it fires on, in a list of clauses.

A clause asks one or two yes-or-no questions about the current and the previous token: which id, how spelled,
which label. The rule is the list of clauses of which any holds. No language model writes or reads it. Rules
are built on some documents of the training text, cut to a length on others, and scored on held-out ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64
from pydantic import Field

from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.latents.base import Folds, TokenTable
from sae_placebo.latents.latent_blocks import leave_out
from sae_placebo.latents.rules.candidates import Candidates
from sae_placebo.latents.rules.literals import LiteralTable
from sae_placebo.latents.rules.search import count, greedy, packed, shortlist

_BUILT_ON = 2 / 3
"""Share of the tokens to fit on that rules are built on; their length is chosen on the others."""
_TOO_RARE = "fires strongly on too few tokens of the text that rules are built on"
_NO_CLAUSE = "no clause saves more bits than it takes to name it"
_NOT_SHORTER = "no rule saves bits on documents that it was not built on"


class RuleSpec(Spec):
    """How rules are built, and which firings they are about.

    Attributes:
        tokens: The most tokens of the text to fit on that are read.
        strong: A rule is about strong firings: activations of at least this share of the latent's typical
            one, sum a^2 / sum a. Weak activations are many and hold little of the whole.
        clauses: The most clauses of a rule.
        shortlist: Of so many clauses, those that describe a latent best alone, a rule is made.
        least: A clause holds at this many tokens at least, and a latent that fires strongly on fewer has no
            rule.
        f1: F1 of held-out precision and recall from which a rule describes a latent.
    """

    tokens: int = Field(200_000, ge=1)
    strong: float = Field(0.5, gt=0)
    clauses: int = Field(12, ge=1)
    shortlist: int = Field(96, ge=1)
    least: int = Field(8, ge=1)
    f1: float = Field(0.5, gt=0, le=1)


@dataclass(frozen=True, eq=False, repr=False)
class RuleText:
    """The tokens that rules are built, chosen and scored on, and the clauses that they are made of.

    Attributes:
        built: Tokens to build on.
        chosen: Tokens of other documents, on which a rule's length is chosen.
        held: The held-out tokens.
        parts: Indices into the tokens to fit on of `built` and `chosen`.
        candidates: Clauses, as they hold on `built`.
    """

    built: LiteralTable
    chosen: LiteralTable
    held: LiteralTable
    parts: tuple[Int64[np.ndarray, "_"], Int64[np.ndarray, "_"]]
    candidates: Candidates
    _packed: dict[tuple[int, int], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, held: TokenTable, fit: TokenTable, spec: RuleSpec, seed: int) -> RuleText:
        """Return the text of rules that are built on `fit` and scored on `held`.

        Args:
            held: The held-out tokens.
            fit: Tokens of the training text, with labels where the text has them.
            spec: Settings.
            seed: It names the draw of documents.
        """
        documents, of = np.unique(fit.documents, return_inverse=True)
        order = numpy_generator(seed, "documents of rules").permutation(len(documents))
        ends = np.cumsum(np.bincount(of)[order])
        all_of_them = min(int(ends[-1]), spec.tokens)
        n_read = max(2, int(np.searchsorted(ends, all_of_them, side="left")) + 1)
        n_built = max(1, int(np.searchsorted(ends, _BUILT_ON * all_of_them, side="right")))
        rank = np.empty(len(documents), dtype=np.int64)
        rank[order] = np.arange(len(documents))
        place = rank[of]
        parts = (
            np.flatnonzero(place < n_built),
            np.flatnonzero((place >= n_built) & (place < n_read)),
        )
        tables = [LiteralTable(TokenTable(fit.rows, fit.places[p], fit.vocabulary)) for p in parts]
        candidates = Candidates.of(tables[0], spec.least)
        return cls(tables[0], tables[1], LiteralTable(held), parts, candidates)

    def where(self, part: int, clause: int) -> Any:
        """Return the tokens of a part (0 built, 1 chosen, 2 held) at which a clause holds, packed."""
        found = self._packed.get((part, clause))
        if found is None:
            table = (self.built, self.chosen, self.held)[part]
            found = packed(table.clause(self.candidates.clauses[clause]))
            self._packed[part, clause] = found
        return found


@dataclass(frozen=True, eq=False, repr=False)
class Rules:
    """The rules of an SAE's latents.

    Attributes:
        text: [latent] the rule in words; None where there is none.
        reason: [latent] why there is no rule; None where there is one.
        bits: [latent] the rule's length in bits; NaN where there is none.
        saved: [latent] bits that it saves per strong firing on the documents on which its length was chosen.
        precision, recall, f1: [latent, fold] on the held-out documents; NaN where there is no rule. A latent
            that never fires strongly there has no recall.
    """

    text: list[str | None]
    reason: list[str | None]
    bits: Float[np.ndarray, " latent"]
    saved: Float[np.ndarray, " latent"]
    precision: Float[np.ndarray, "latent fold"]
    recall: Float[np.ndarray, "latent fold"]
    f1: Float[np.ndarray, "latent fold"]

    @classmethod
    def none(cls, n: int, n_folds: int, reason: str) -> Rules:
        """Return no rules, for a reason."""
        nothing, scores = np.full(n, np.nan), np.full((n, n_folds), np.nan)
        return cls(
            [None] * n, [reason] * n, nothing, nothing.copy(), scores, scores.copy(), scores.copy()
        )


def describe(
    held: Any,
    fit: Any,
    which: Int64[np.ndarray, " some"],
    text: RuleText,
    folds: Folds,
    spec: RuleSpec,
) -> Rules:
    """Return the rules of some latents; the others have none, with the reason that they are not replicated.

    Args:
        held: Codes on the held-out tokens, CSR [token, latent].
        fit: Codes on the text to fit on, CSR [token, latent].
        which: The latents.
        text: What rules are built on.
        folds: Groups of the held-out documents.
        spec: Settings.

    Source: rules by minimum description length follow Rissanen 1978 and, for lists of rules, Quinlan and
        Rivest 1989. That a rule's length is chosen on other documents, the literals, and strong firings are
        ours. Token-level rules for neurons without a language model: Foote et al. 2023 (N2G).
    """
    rules = Rules.none(
        held.shape[1], 1 + folds.n_groups, "no SAE of another seed has a partner of it"
    )
    typical = _typical(fit)
    strong = [
        _strong(codes[:, which], typical[which] * spec.strong)
        for codes in (fit.tocsc(), held.tocsc())
    ]
    built, chosen = (strong[0].tocsr()[part].tocsc() for part in text.parts)
    groups = folds.groups[text.held.tokens.documents]
    for column, (clauses, total) in enumerate(shortlist(text.candidates, built, spec.shortlist)):
        latent = int(which[column])
        fires = [_dense(codes, column) for codes in (built, chosen, strong[1])]
        rule = _rule(clauses, total, fires, text, spec)
        if isinstance(rule, str):
            rules.reason[latent] = rule
            continue
        names, rules.saved[latent] = rule
        _score(rules, latent, names, fires[2], groups, text)
    return rules


def _rule(
    clauses: Int64[np.ndarray, " clause"],
    total: int,
    fires: Sequence[Bool[np.ndarray, "_"]],
    text: RuleText,
    spec: RuleSpec,
) -> tuple[list[int], float] | str:
    """Return the clauses of a latent's rule, and what it saves per firing; or why there is no rule."""
    if total < spec.least:
        return _TOO_RARE
    if not len(clauses):
        return _NO_CLAUSE
    bits, n = text.candidates.bits[clauses], len(text.built)
    where = np.stack([text.where(0, int(clause)) for clause in clauses])
    order = greedy(where, bits, packed(fires[0]), n, spec.clauses)
    if not order:
        return _NO_CLAUSE
    names = [int(clauses[i]) for i in order]
    length, saved = _chosen_length(names, fires, text)
    return (names[:length], saved / max(int(fires[1].sum()), 1)) if length else _NOT_SHORTER


def _chosen_length(
    names: Sequence[int], fires: Sequence[Bool[np.ndarray, "_"]], text: RuleText
) -> tuple[int, float]:
    """Return how many clauses give the shortest code of the firings on other documents, and what they save.

    The rates inside and outside of the rule are those of the documents that it was built on.
    """
    sizes = [len(one) for one in fires[:2]]
    marks = [packed(one) for one in fires[:2]]
    totals = [int(count(one)) for one in marks]
    union = [np.zeros_like(one) for one in marks]
    alone = _coded(sizes[1], totals[1], sizes[0], totals[0])
    best, saved, named = 0, 0.0, 0.0
    for n, clause in enumerate(names, 1):
        union = [u | text.where(part, clause) for part, u in enumerate(union)]
        inside = [int(count(u)) for u in union]
        hits = [int(count(u & mark)) for u, mark in zip(union, marks, strict=True)]
        named += text.candidates.bits[clause] + 1
        length = named + _coded(inside[1], hits[1], inside[0], hits[0])
        outside = [size - i for size, i in zip(sizes, inside, strict=True)]
        missed = [t - h for t, h in zip(totals, hits, strict=True)]
        length += _coded(outside[1], missed[1], outside[0], missed[0])
        if alone - length > saved:
            best, saved = n, alone - length
    return best, saved


def _coded(n: int, fires: int, n_before: int, fires_before: int) -> float:
    """Return the bits of n draws, of which some fire, in a code for the rate of earlier draws."""
    rate = (fires_before + 0.5) / (n_before + 1)
    return float(-fires * np.log2(rate) - (n - fires) * np.log2(1 - rate))


def _score(
    rules: Rules,
    latent: int,
    names: Sequence[int],
    fires: Bool[np.ndarray, " token"],
    groups: Int64[np.ndarray, " token"],
    text: RuleText,
) -> None:
    """Write a rule, its length, and its scores on the held-out documents."""
    union = np.bitwise_or.reduce([text.where(2, name) for name in names])
    named = np.unpackbits(union.view(np.uint8), count=len(fires)).astype(bool)
    n_groups = rules.f1.shape[1] - 1
    by_group = [np.bincount(groups, w, minlength=n_groups) for w in (named, fires, named & fires)]
    inside, firings, hits = leave_out(np.stack(by_group))
    with np.errstate(divide="ignore", invalid="ignore"):
        rules.precision[latent] = np.where(inside > 0, hits / inside, np.nan)
        rules.recall[latent] = np.where(firings > 0, hits / firings, np.nan)
        rules.f1[latent] = np.where(firings > 0, 2 * hits / (inside + firings), np.nan)
    vocabulary, clauses = text.built.tokens.vocabulary, text.candidates.clauses
    said = (" & ".join(one.in_words(vocabulary) for one in clauses[name]) for name in names)
    rules.text[latent], rules.reason[latent] = " | ".join(said), None
    rules.bits[latent] = sum(text.candidates.bits[name] + 1 for name in names)


def _typical(codes: Any) -> Float[np.ndarray, " latent"]:
    """Return each latent's mean activation weighted by itself; 0 where it never fires."""
    whole = np.asarray(codes.sum(axis=0), dtype=np.float64).ravel()
    squares = np.asarray(codes.multiply(codes).sum(axis=0), dtype=np.float64).ravel()
    typical: Float[np.ndarray, " latent"] = squares / np.where(whole > 0, whole, 1)
    return typical


def _strong(codes: Any, least: Float[np.ndarray, " latent"]) -> Any:
    """Return where each latent is active by at least so much: CSC [token, latent] of ones."""
    from scipy.sparse import csc_matrix

    strong = codes.data >= np.repeat(least, np.diff(codes.indptr))
    kept = np.concatenate([[0], np.cumsum(strong)])[codes.indptr]
    ones = np.ones(int(strong.sum()), dtype=np.int32)
    return csc_matrix((ones, codes.indices[strong], kept), shape=codes.shape)


def _dense(codes: Any, column: int) -> Bool[np.ndarray, " token"]:
    """Return one column of CSC ones as booleans."""
    fires = np.zeros(codes.shape[0], dtype=bool)
    fires[codes.indices[codes.indptr[column] : codes.indptr[column + 1]]] = True
    return fires

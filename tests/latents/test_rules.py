"""Rules of planted latents are found, and latents without a rule are given none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from jaxtyping import Bool
from scipy.sparse import csr_matrix

from sae_placebo.data.labels import NAMES
from sae_placebo.data.labels.base import Labels
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import Folds, TokenTable
from sae_placebo.latents.rules.candidates import Candidates
from sae_placebo.latents.rules.literals import (
    AFTER_LABEL,
    AFTER_TOKEN,
    LABEL,
    SPELLED,
    TOKEN,
    Literal,
    LiteralTable,
)
from sae_placebo.latents.rules.rules import Rules, RuleSpec, RuleText, describe
from sae_placebo.latents.rules.search import code_length, count, packed

VOCABULARY = tuple(f"{'abcdefgh'[i % 8]}{i}" if i % 3 else f"W{i}" for i in range(200))
CALL, KEYWORD = NAMES.index("role.call_target"), NAMES.index("kind.keyword")
SPEC = RuleSpec()
PER_KIND = 12


def text(documents: int, seed: int) -> TokenTable:
    """Return random tokens; two labels hold at a third and a fifth of them, at random."""
    random = np.random.default_rng(seed)
    chance = 1 / np.arange(1, 201)
    ids = random.choice(200, (documents * 4, 101), p=chance / chance.sum()).astype(np.int32)
    bits = np.zeros((*ids.shape, len(NAMES)), dtype=bool)
    bits[..., CALL] = random.random(ids.shape) < 1 / 3
    bits[..., KEYWORD] = random.random(ids.shape) < 1 / 5
    names = tuple(map(str, range(documents)))
    labels = Labels(NAMES, np.packbits(bits, axis=-1, bitorder="little"), np.ones(ids.shape, bool))
    lengths, owners = np.full(len(ids), 101, np.int32), np.repeat(np.arange(documents), 4)
    rows = Rows(ids, lengths, owners.astype(np.int32), names, labels)
    return TokenTable(rows, np.argwhere(rows.usable()).astype(np.int64), VOCABULARY)


FIT, HELD = text(100, 0), text(40, 1)
FOLDS = Folds.of(HELD.documents, HELD.n_documents, 0)
TEXT = RuleText.of(HELD, FIT, SPEC, 0)


@dataclass
class Plan:
    """What a latent is planted on: any of the clauses, or chance."""

    clauses: tuple[tuple[Literal, ...], ...]

    def fires(self, tokens: TokenTable, seed: int) -> Bool[np.ndarray, " token"]:
        """Return where it fires: it misses 5%, and 3% of its firings are anywhere."""
        random = np.random.default_rng(seed)
        if not self.clauses:
            return np.asarray(random.random(len(tokens)) < 0.003 * 2 ** (seed % 4))
        table = LiteralTable(tokens)
        where = np.logical_or.reduce([table.clause(clause) for clause in self.clauses])
        where &= random.random(len(tokens)) >= 0.05
        return np.asarray(where | (random.random(len(tokens)) < 0.03 * where.mean()))


def plans() -> list[Plan]:
    random = np.random.default_rng(7)
    made = []
    for _ in range(PER_KIND):
        chosen = [int(i) for i in random.choice(np.arange(5, 60), 6, replace=False)]
        made.append(Plan(tuple((Literal(TOKEN, i),) for i in chosen[:4])))
        before = Literal(AFTER_TOKEN, int(random.integers(0, 5)))
        made.append(Plan(((Literal(TOKEN, int(random.integers(0, 5))), before),)))
        called = Literal(LABEL, CALL)
        made.append(Plan(((Literal(TOKEN, chosen[4]), called), (Literal(TOKEN, chosen[5]),))))
        made.append(Plan(((called, Literal(AFTER_LABEL, KEYWORD)),)))
        made.append(Plan(()))
    return made


def codes_of(planned: list[Plan], tokens: TokenTable, seed: int) -> csr_matrix:
    """Return codes: strong where a latent fires, and weak on a tenth of all tokens."""
    random = np.random.default_rng(seed)
    columns = [plan.fires(tokens, 100 * seed + i) for i, plan in enumerate(planned)]
    fires = np.stack(columns, axis=1)
    strength = random.lognormal(0, 0.2, fires.shape)
    weak = 0.05 * (random.random(fires.shape) < 0.1)
    return csr_matrix(np.where(fires, strength, weak).astype(np.float32))


@pytest.fixture(scope="module")
def found() -> tuple[list[Plan], Rules]:
    planned = plans()
    held, fit = codes_of(planned, HELD, 1), codes_of(planned, FIT, 2)
    return planned, describe(held, fit, np.arange(len(planned)), TEXT, FOLDS, SPEC)


def test_planted_rules_are_found(found: tuple[list[Plan], Rules]) -> None:
    planned, rules = found
    planted = [i for i, plan in enumerate(planned) if plan.clauses]
    assert np.mean(rules.f1[planted, 0] >= 0.85) >= 0.9
    said = 0
    for i in planted:
        wanted = {
            frozenset(one.in_words(VOCABULARY) for one in clause) for clause in planned[i].clauses
        }
        text = rules.text[i]
        assert text is not None
        assert rules.reason[i] is None
        said += wanted <= {frozenset(clause.split(" & ")) for clause in text.split(" | ")}
    assert said >= 0.9 * len(planted)


def test_a_latent_without_a_rule_is_given_none(found: tuple[list[Plan], Rules]) -> None:
    planned, rules = found
    chance = [i for i, plan in enumerate(planned) if not plan.clauses]
    assert sum(rules.text[i] is not None for i in chance) <= 0.05 * len(chance)
    for i in chance:
        if rules.text[i] is None:
            assert rules.reason[i]
            assert np.isnan(rules.f1[i]).all()


def test_scores_are_those_of_the_held_out_text(found: tuple[list[Plan], Rules]) -> None:
    planned, rules = found
    held = codes_of(planned, HELD, 1).toarray()
    table = LiteralTable(HELD)
    clause = planned[1].clauses[0]
    assert rules.text[1] == " & ".join(one.in_words(VOCABULARY) for one in clause)
    named, fires = table.clause(clause), held[:, 1] > 0.4
    assert rules.precision[1, 0] == pytest.approx(fires[named].mean())
    assert rules.recall[1, 0] == pytest.approx(named[fires].mean())
    kept = FOLDS.groups[HELD.documents] != 3
    assert rules.recall[1, 4] == pytest.approx(named[kept & fires].mean())
    assert rules.bits[1] == pytest.approx(
        2 + np.log2(sum(len(c) == 2 for c in TEXT.candidates.clauses))
    )
    assert 1 < rules.saved[1] < 20


def test_only_those_asked_about_have_rules() -> None:
    planned = plans()[:6]
    held, fit = codes_of(planned, HELD, 1), codes_of(planned, FIT, 2)
    whole = describe(held, fit, np.arange(6), TEXT, FOLDS, SPEC)
    part = describe(held, fit, np.array([1, 5]), TEXT, FOLDS, SPEC)
    assert [part.text[i] for i in (1, 5)] == [whole.text[i] for i in (1, 5)]
    assert part.text[0] is None
    assert "another seed" in str(part.reason[0])


def test_a_latent_that_never_fires_has_a_reason() -> None:
    silent = (
        csr_matrix((len(HELD), 2), dtype=np.float32),
        csr_matrix((len(FIT), 2), dtype=np.float32),
    )
    rules = describe(*silent, np.arange(2), TEXT, FOLDS, SPEC)
    assert rules.text == [None, None]
    assert all("few tokens" in str(reason) for reason in rules.reason)


def test_candidates_hold_where_their_literals_do() -> None:
    table = TEXT.built
    candidates = Candidates.of(table, 8)
    assert (candidates.counts >= 8).all()
    assert (np.diff(candidates.matrix.indptr) == candidates.counts).all()
    random = np.random.default_rng(0)
    kinds = {tuple(one.kind for one in clause) for clause in candidates.clauses}
    assert {(TOKEN, AFTER_TOKEN), (TOKEN, LABEL), (LABEL, AFTER_LABEL), (LABEL,)} <= kinds
    assert (TOKEN, SPELLED) not in kinds  # the spelling follows from the token
    for i in random.choice(len(candidates.clauses), 30, replace=False):
        column = candidates.matrix[:, [int(i)]].toarray().ravel() > 0
        assert (column == table.clause(candidates.clauses[int(i)])).all()


def test_text_without_labels_has_rules_on_tokens() -> None:
    bare = [TokenTable(Rows(t.rows.token_ids, t.rows.lengths, t.rows.documents, t.rows.names), t.places,
                       VOCABULARY) for t in (HELD, FIT)]  # fmt: skip
    planned = plans()[:2]
    codes = [codes_of(planned, t, s) for t, s in zip(bare, (1, 2), strict=True)]
    rules = describe(*codes, np.arange(2), RuleText.of(*bare, SPEC, 0), FOLDS, SPEC)
    assert (rules.f1[:, 0] >= 0.85).all()


def test_token_texts_are_quoted() -> None:
    assert Literal(TOKEN, 0).in_words(('a" | "b',)) == '"a\\" | \\"b"'
    assert Literal(AFTER_TOKEN, 0).in_words(("\n",)) == 'after "\\n"'


def test_code_lengths_and_packed_counts() -> None:
    assert code_length(8, 4) == pytest.approx(8)
    assert code_length(8, 0) == 0
    assert code_length(0, 0) == 0
    marks = np.random.default_rng(0).random((3, 131)) < 0.4
    assert (count(packed(marks)) == marks.sum(1)).all()

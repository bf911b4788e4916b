"""The surrogate: what lies between tokens is estimated, its moments are matched, its bits are a row's."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from sae_placebo.core.errors import TextError
from sae_placebo.core.spec import generator, numpy_generator
from sae_placebo.data.text import Rows
from sae_placebo.models.activations import Calibration, blocks
from sae_placebo.models.surrogate import (
    SurrogateCounting,
    SurrogateReader,
    clipped_to_semidefinite,
)
from sae_placebo.models.token_tables import Entries, GroupSums, shrinkage

D_IN, N_TOKENS, NAME = 8, 30, "resid_post.0"


class Planted:
    """Activations of known parts: each token's vector, its pair's, its document's, and noise of each place.

    It reads rows by their first id, which names the row; so tokens stand from the second position on.
    """

    widths: ClassVar = {NAME: D_IN}
    names = (NAME,)

    def __init__(
        self, rows: Rows, *, token: float = 1.0, pair: float = 0.0, document: float = 0.0
    ) -> None:
        random = generator(3, "planted")
        self.rows = rows
        mixing = torch.diag(torch.linspace(0.5, 1.5, D_IN))

        def parts(n: int, variance: float) -> torch.Tensor:
            drawn = torch.randn(n, D_IN, generator=random) @ mixing
            drawn -= drawn.mean(0)
            return drawn * (variance * n / drawn.square().sum().clamp_min(1e-9)) ** 0.5

        self.of_token = parts(N_TOKENS, token)
        self.of_pair = parts(N_TOKENS**2, pair)
        self.of_document = parts(len(rows.names), document)
        self.noise = torch.randn(*rows.token_ids.shape, D_IN, generator=random) / D_IN**0.5 * 2

    def read(self, token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        row = token_ids[:, 0] - 1_000
        ids = token_ids % N_TOKENS
        pairs = ids.clone()
        pairs[:, 1:] += N_TOKENS * ids[:, :-1]
        documents = torch.from_numpy(self.rows.documents.astype(np.int64))[row]
        x = self.of_token[ids] + self.of_pair[pairs] + self.of_document[documents][:, None]
        return {NAME: 5.0 + x + self.noise[row]}


def made(n_documents: int = 400, per_document: int = 2, width: int = 26, own: int = 0) -> Rows:
    """Rows of random tokens, the first id of each naming it; `own` tokens of a document fill half of it."""
    random = np.random.default_rng(0)
    n = n_documents * per_document
    ids = random.zipf(1.4, (n, width)).clip(max=N_TOKENS) - 1
    documents = np.arange(n) // per_document
    if own:
        common = random.integers(0, N_TOKENS, (n_documents, own))
        half = width // 2
        ids[:, half:] = common[documents][
            np.arange(n)[:, None], random.integers(0, own, (n, width - half))
        ]
    ids[:, 0] = 1_000 + np.arange(n)
    names = tuple(f"d{i}" for i in range(n_documents))
    return Rows(
        ids.astype(np.int32), np.full(n, width, np.int32), documents.astype(np.int32), names
    )


def counted(rows: Rows, reader: Any, with_pairs: bool = False, seed: int = 0) -> SurrogateCounting:
    calibration = Calibration(torch.full((D_IN,), 5.1), 1.0, 1.0, 1.0, math.inf, 1, 0)
    counting = SurrogateCounting(rows, {NAME: calibration}, seed, with_pairs)
    for block in blocks(reader, rows, np.arange(len(rows.lengths)), 64):
        counting.add(block)
    return counting


def surrogate(rows: Rows, reader: Any, with_pairs: bool = False) -> SurrogateReader:
    return counted(rows, reader, with_pairs).reader(0, 0)


def empirical(rows: Rows, reader: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, and the mean and covariance of activations."""
    whole = np.arange(len(rows.lengths))
    (block,) = blocks(reader, rows, whole, len(whole))
    x = block.activations[NAME].double()
    return block.token_ids, x.mean(0), torch.cov(x.T, correction=0)


def of_tokens(rows: Rows, table: torch.Tensor) -> float:
    """Return the variance of a token's entry, at the rows' frequencies."""
    ids = torch.from_numpy(rows.token_ids[rows.usable()].astype(np.int64))
    values = table[ids % N_TOKENS].double()
    return float((values - values.mean(0)).square().sum(1).mean())


# --- what lies between tokens ----------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.2, 1.0, 3.0])
def test_the_variance_between_tokens_is_estimated(variance: float) -> None:
    rows = made()
    reader = Planted(rows, token=variance)
    law = surrogate(rows, reader).laws[NAME]
    truth = of_tokens(rows, reader.of_token)
    found = law.tokens.component
    assert found.value == pytest.approx(truth, rel=0.05)
    assert found.n_tokens == int(rows.usable().sum()) == law.n_tokens
    assert found.error is not None
    assert abs(found.value - truth) < 6 * found.error
    assert found.error < 0.1 * truth


def test_what_documents_share_is_not_the_tokens() -> None:
    """Documents repeat tokens of their own, and share a part as large as the tokens': the table holds it."""
    rows = made(60, 4, own=3)
    reader = Planted(rows, token=1.0, document=4.0)
    counting = counted(rows, reader)
    law = counting.reader(0, 0).laws[NAME]
    truth = of_tokens(rows, reader.of_token)
    _, mean, _ = empirical(rows, reader)
    cells = counting._sums[NAME].about(mean - 5.1)
    raw = float((cells.n / cells.n.sum() * cells.means.square().sum(1)).sum())
    assert raw > 1.3 * truth  # unshrunk means hold what few documents share
    assert law.tokens.component.error is not None
    assert abs(law.tokens.component.value - truth) < 5 * law.tokens.component.error
    assert abs(law.tokens.component.value - truth) < 0.5 * (raw - truth)


def test_the_table_has_the_variance_that_was_estimated_and_the_activations_mean() -> None:
    rows = made(60, 4, own=3)
    reader = Planted(rows, token=0.3, document=1.0)
    found = surrogate(rows, reader)
    law = found.laws[NAME]
    ids, mean, _ = empirical(rows, reader)
    values = law.table[torch.unique(ids, return_inverse=True)[1]].double()
    assert torch.allclose(values.mean(0), mean, atol=1e-5)
    variance = float((values - mean).square().sum(1).mean())
    assert variance == pytest.approx(law.tokens.component.value, rel=1e-3)
    assert law.tokens.by > 1
    assert torch.allclose(law.table[-1].double(), mean, atol=1e-5)


def test_tokens_that_say_nothing_leave_a_gaussian() -> None:
    random = torch.randn(4, 200, D_IN, generator=generator(0, "nothing"))
    sums = GroupSums(200, D_IN)
    for group in range(4):
        sums.add(torch.arange(200), torch.full((200,), group), random[group])
    value = sums.about(torch.zeros(D_IN)).component().value
    assert abs(value) < 0.15 * D_IN  # of means of four there would be a quarter of D_IN
    zeros = torch.zeros(3, D_IN)
    n = torch.tensor([1.0, 5.0, 9.0])
    assert shrinkage(zeros, torch.ones(3, D_IN), n, -0.1) == math.inf
    assert shrinkage(zeros, torch.ones(3, D_IN), n, 2.0 * D_IN) == 0.0
    by = shrinkage(zeros, torch.ones(3, D_IN), n, 0.25 * D_IN)
    share = n / (n + by)
    assert float((n / n.sum() * share.square()).sum()) == pytest.approx(0.25)


def test_what_cannot_be_told_apart_is_refused() -> None:
    rows = made(1, 40)
    with pytest.raises(TextError, match="in two of the 4 groups"):
        surrogate(rows, Planted(rows))


# --- moments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_pairs", [False, True])
def test_moments_are_the_activations_own_as_computed_and_as_drawn(with_pairs: bool) -> None:
    rows = made()
    reader = Planted(rows, token=1.0, pair=1.0, document=0.3)
    found = surrogate(rows, reader, with_pairs)
    law = found.laws[NAME]
    assert max(law.moment_errors.values()) < 0.01
    _, mean, covariance = empirical(rows, reader)
    _, drawn_mean, drawn = empirical(rows, found)
    scale = float(covariance.trace()) ** 0.5
    assert float((drawn_mean - mean).norm()) < 0.05 * scale
    assert float((drawn - covariance).norm()) < 0.1 * float(covariance.norm())


def test_without_pairs_nothing_is_clipped() -> None:
    rows = made(60, 4, own=3)
    law = surrogate(rows, Planted(rows, token=2.0, document=2.0)).laws[NAME]
    assert law.clipped < 1e-6
    assert max(law.moment_errors.values()) < 1e-4
    assert float(torch.linalg.eigvalsh(law.residual)[0]) > 0


def test_a_planted_negative_direction_is_clipped_and_counted() -> None:
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator(0, "turn")).double()).Q
    values = torch.tensor([3.0, 2.0, 1.0, -0.25, -0.5]).double()
    left, clipped = clipped_to_semidefinite((turn * values) @ turn.T)
    assert clipped == pytest.approx(0.75)
    assert torch.linalg.eigvalsh(left).tolist() == pytest.approx([0, 0, 1, 2, 3], abs=1e-9)


def test_moments_that_are_off_are_said() -> None:
    import dataclasses

    rows = made()
    law = surrogate(rows, Planted(rows)).laws[NAME]
    assert law.diagnostics()["surrogate_moment_error"]["reason"] is None
    off = dataclasses.replace(law, clipped=0.07, moment_errors={"mean": 0.0, "covariance": 0.052})
    entry = off.diagnostics()["surrogate_moment_error"]
    assert entry["value"] == 0.052
    assert "off by up to 5.2%: its table has 7.0%" in entry["reason"]


# --- entries ---------------------------------------------------------------------------------------


def test_pairs_have_entries_where_they_are_repeated_and_the_tokens_serve_else() -> None:
    ids = np.array([[0, 5, 6, 5, 6], [0, 6, 5, 7, 0]], np.int32)
    rows = Rows(ids, np.array([5, 4], np.int32), np.array([0, 1], np.int32), ("a", "b"))
    found = Entries.of(rows, True)
    assert found.tokens.tolist() == [5, 6, 7]
    # (5, 6) twice, (6, 5) twice; (0, 5), (0, 6) and (5, 7) once
    assert [(p >> 32, p & 0xFFFFFFFF) for p in found.pairs.tolist()] == [(5, 6), (6, 5)]
    assert found.owners.tolist() == [1, 0]
    previous, current = np.array([5, 6, 0, 5, 5, -1, 5]), np.array([6, 5, 5, 7, 9, 6, 5])
    assert found.find(previous, current).tolist() == [3, 4, 0, 2, 5, 1, 0]
    assert Entries.of(rows, True, most=1).pairs.tolist() == found.pairs.tolist()[:1]
    assert len(Entries.of(rows, False)) == 3
    assert Entries.of(rows, False).find(previous, current).tolist() == [1, 0, 0, 2, 3, 1, 0]


def test_pairs_hold_what_tokens_cannot() -> None:
    rows = made(500, 4, 41)
    reader = Planted(rows, token=0.5, pair=2.0)
    by_token, by_pair = (surrogate(rows, reader, pairs).laws[NAME] for pairs in (False, True))
    assert by_pair.pairs is not None
    tokens = by_token.tokens.component.value
    assert by_pair.tokens.component.value == pytest.approx(tokens, rel=1e-5)
    assert by_pair.pairs.component.value > tokens + 1
    assert float(by_pair.residual.trace()) < float(by_token.residual.trace()) - 0.8
    named = by_pair.diagnostics()
    assert named["surrogate_pair_variance"]["value"] > named["surrogate_token_variance"]["value"]
    assert "surrogate_pair_variance" not in by_token.diagnostics()


def test_a_token_that_training_never_saw_has_the_mean_and_is_counted() -> None:
    rows = made()
    found = surrogate(rows, Planted(rows))
    law = found.laws[NAME]
    unseen = Rows(
        np.array([[0, 500, 501, 1, 2]], np.int32),
        np.array([5], np.int32),
        np.array([0], np.int32),
        ("u",),
    )
    entry = found.diagnostics(unseen)[NAME]["surrogate_unseen_share"]
    assert (entry["value"], entry["n"], entry["unit"]) == (0.5, 4, "share")
    many = torch.full((400, 5), 500)
    many[:, 0] = torch.arange(400)
    x = found.read(many)[NAME][:, 1:].reshape(-1, D_IN)
    noise = float(law.residual.trace() / len(x)) ** 0.5
    assert float((x.mean(0) - law.table[-1]).norm()) < 4 * noise


# --- bits ------------------------------------------------------------------------------------------


def test_the_same_row_has_the_same_bits_in_any_batch_order_and_subset() -> None:
    rows = made()
    found = surrogate(rows, Planted(rows), with_pairs=True)
    ids = torch.from_numpy(rows.token_ids[:40].astype(np.int64))
    whole = found.read(ids)[NAME]
    order = torch.tensor([31, 4, 17])
    assert torch.equal(found.read(ids[order])[NAME], whole[order])
    for size in (1, 7, 64):
        order = numpy_generator(0, "any").permutation(40)
        for block in blocks(found, rows, order, size):
            row, position = block.places.T
            assert torch.equal(block.activations[NAME], whole[row, position])


def test_seeds_and_hookpoints_draw_other_noise_around_the_same_means() -> None:
    rows = made()
    counting = counted(rows, Planted(rows))
    law = counting.reader(0, 0).laws[NAME]
    ids = torch.from_numpy(rows.token_ids[:200].astype(np.int64))
    one, other, elsewhere = (
        counting.reader(0, 0).read(ids)[NAME],
        counting.reader(0, 1).read(ids)[NAME],
        SurrogateReader({"resid_post.9": law}, counting.entries, 0, 0).read(ids)["resid_post.9"],
    )
    for x in (other, elsewhere):
        apart = (one - x)[:, 1:].reshape(-1, D_IN)
        twice = 2 * float(law.residual.trace())
        assert float(apart.square().sum(1).mean()) == pytest.approx(twice, rel=0.1)
        assert float(apart.mean(0).norm()) < 0.1 * twice**0.5


def test_counting_that_was_stopped_goes_on_to_the_same_bits() -> None:
    rows = made(40)
    reader = Planted(rows)
    whole = counted(rows, reader, with_pairs=True)
    calibrations = whole._calibrations
    halves = [SurrogateCounting(rows, calibrations, 0, True) for _ in range(2)]
    for i, block in enumerate(blocks(reader, rows, np.arange(len(rows.lengths)), 64)):
        if i == 1:
            saved = {
                name: {k: t.clone() for k, t in part.items()} for name, part in halves[0].state()
            }
            halves[1].restore(saved.__getitem__)
        halves[int(i >= 1)].add(block)
    for (name, part), (_, again) in zip(whole.state(), halves[1].state(), strict=True):
        assert all(torch.equal(part[key], again[key]) for key in part), name
    assert torch.equal(whole.reader(0, 0).laws[NAME].table, halves[1].reader(0, 0).laws[NAME].table)

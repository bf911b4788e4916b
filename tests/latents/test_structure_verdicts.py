"""Every verdict and every reason, by planted columns."""

from __future__ import annotations

import numpy as np
import pytest

from sae_placebo.latents.ladder.fitting import RUNGS
from sae_placebo.latents.origin.rule import (
    EVIDENCE,
    EXPLAINED,
    NOT_EXPLAINED,
    UNDETERMINED,
    jackknife_se,
    last_known,
    verdicts,
)

FOLDS = 5
SEED_HAS = "the SAE of another seed has no partner of it"


def on_folds(value: float) -> np.ndarray:
    return np.full((1, FOLDS), value)


def one(
    judged: bool = True,
    placebo: bool | None = False,
    sibling: bool | None = True,
    rungs: dict[str, float] | None = None,
    columns: dict[str, np.ndarray] | None = None,
    reasons: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Return the verdict on one latent, which is not explained but for what is said, and its evidence."""
    r2 = {name: on_folds(0.1) for name in RUNGS}
    r2 |= {name: on_folds(value) for name, value in (rungs or {}).items()} | (columns or {})
    found = verdicts(
        np.full((1, FOLDS), judged),
        r2,
        None if placebo is None else np.full((1, FOLDS), placebo),
        None if sibling is None else np.full((1, FOLDS), sibling),
        0.5,
        reasons or {},
    )
    assert found.verdict.shape == (1, FOLDS)
    assert len(set(found.verdict[0].tolist())) == 1
    return int(found.verdict[0, 0]), str(found.evidence[0])


def test_the_rungs_of_the_ladder_are_those_with_evidence() -> None:
    assert tuple(EVIDENCE) == RUNGS[1:]


def test_not_explained_is_what_is_left() -> None:
    verdict, why = one()
    assert verdict == NOT_EXPLAINED
    assert why.startswith("no rung explains it")


def test_what_fires_too_rarely_is_undetermined_whatever_explains_it() -> None:
    verdict, why = one(judged=False, placebo=True, rungs={"token": 0.9})
    assert (verdict, why) == (UNDETERMINED, "fires too rarely to be judged")


@pytest.mark.parametrize("name", list(EVIDENCE))
def test_the_first_rung_that_explains_it_is_the_evidence(name: str) -> None:
    above = list(EVIDENCE)[list(EVIDENCE).index(name) :]
    verdict, why = one(placebo=None, rungs=dict.fromkeys(above, 0.5))
    assert (verdict, why) == (EXPLAINED, f"explained by {EVIDENCE[name]}")


def test_a_constant_explains_nothing() -> None:
    assert one(rungs={"constant": 0.9})[0] == NOT_EXPLAINED


def test_a_partner_in_the_placebo_is_explained() -> None:
    assert one(placebo=True) == (EXPLAINED, "has a partner in the placebo SAE")
    assert one(placebo=True, rungs=dict.fromkeys(EVIDENCE, np.nan))[0] == EXPLAINED


def test_nearly_explained_is_undetermined() -> None:
    r2 = on_folds(0.45)
    r2[0, 1:] = [0.35, 0.49, 0.4, 0.49]
    verdict, why = one(columns={"window": r2})
    assert verdict == UNDETERMINED
    assert "two standard errors" in why
    assert one(rungs={"window": 0.45})[0] == NOT_EXPLAINED  # without any spread


def test_a_latent_that_no_rung_knows_is_undetermined() -> None:
    verdict, why = one(rungs=dict.fromkeys(RUNGS, np.nan))
    assert verdict == UNDETERMINED
    assert "do not vary" in why
    assert one(rungs=dict.fromkeys(RUNGS[-2:], np.nan))[0] == NOT_EXPLAINED


def test_without_a_placebo_everything_is_undetermined_or_explained() -> None:
    verdict, why = one(placebo=None, reasons={"placebo": "none was drawn"})
    assert (verdict, why) == (UNDETERMINED, "none was drawn")
    assert one(placebo=None)[1] == "no placebo read the same tokens"


def test_without_a_partner_in_another_seed_everything_is_undetermined_or_explained() -> None:
    assert one(sibling=False) == (UNDETERMINED, SEED_HAS)
    assert one(sibling=None, reasons={"sibling": "one seed"}) == (UNDETERMINED, "one seed")
    assert one(sibling=None)[1] == "there is no SAE of another seed"


def test_every_fold_has_its_own_verdict_and_evidence_is_of_all_documents() -> None:
    r2 = on_folds(0.1)
    r2[0, 2] = 0.9
    found = verdicts(
        np.ones((1, FOLDS), dtype=bool),
        {"token": r2},
        np.array([[False, False, False, True, False]]),
        np.array([[False] * (FOLDS - 1) + [True]]),
        0.5,
        {},
    )
    expected = [[UNDETERMINED, UNDETERMINED, EXPLAINED, EXPLAINED, UNDETERMINED]]
    assert found.verdict.tolist() == expected  # the last is near: the folds spread widely
    assert "two standard errors" in found.evidence[0]
    np.testing.assert_array_equal(found.share(EXPLAINED), [0, 0, 1, 1, 0])
    assert sum(found.share(v) for v in range(3)).tolist() == [1.0] * FOLDS


def test_the_jackknife_by_hand_and_without_folds_that_are_undefined() -> None:
    values = np.array([[9.0, 1, 2, 3], [9.0, 1, np.nan, 3], [9.0, np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(jackknife_se(values), [np.sqrt(2 * 2 / 3), np.sqrt(2 / 2), 0])


def test_the_last_rung_that_is_known() -> None:
    rungs = {"token": on_folds(0.2), "window": on_folds(np.nan)}
    np.testing.assert_array_equal(last_known(rungs), on_folds(0.2))
    np.testing.assert_array_equal(last_known(rungs | {"window": on_folds(0.3)}), on_folds(0.3))

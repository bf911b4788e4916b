"""In what an arm's model runs: measured errors, the decision, and reading into kept buffers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import architectures
from sae_placebo.core.errors import ModelError
from sae_placebo.data.rows import Rows
from sae_placebo.data.usable import usable_positions
from sae_placebo.models import activations, harvest_precision
from sae_placebo.models.activations import HarvestSpec, blocks
from sae_placebo.models.harvest_precision import HarvestPrecision, arm_reader, bf16_errors
from sae_placebo.models.loading import Reader, truncate
from sae_placebo.trial.stages.harvest import harvest_repeats, random_rows

PLACES = ["resid_post.0", "mlp_out.1"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


@pytest.fixture
def model() -> Any:
    return architectures.build("llama")


@pytest.fixture(scope="module")
def rows() -> Rows:
    random = np.random.default_rng(0)
    lengths = random.integers(4, 25, size=60).astype(np.int32)
    ids = random.integers(3, architectures.VOCABULARY, size=(60, 24)).astype(np.int32)
    ids[np.arange(24) >= lengths[:, None]] = 0
    return Rows(ids, lengths, np.zeros(60, np.int32), ("d",))


def read(reader: Any, rows: Rows, **settings: Any) -> list[dict[str, torch.Tensor]]:
    order = np.arange(len(rows.lengths))[::-1].copy()
    return [
        {name: x.clone() for name, x in block.activations.items()}
        for block in blocks(reader, rows, order, 25, **settings)
    ]


class Slow:
    """A reader that offers nothing but `read`."""

    def __init__(self, reader: Reader) -> None:
        self.names, self.widths, self.read = reader.names, reader.widths, reader.read


def test_reading_into_buffers_gives_the_bits_of_reading(model: Any, rows: Rows) -> None:
    reader = Reader(model, PLACES)
    found, expected = read(reader, rows), read(Slow(reader), rows)
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert list(one) == PLACES
        assert all(torch.equal(one[name], other[name]) for name in PLACES)
        assert not any(x.is_inference() for x in one.values())


def test_a_thread_of_its_own_changes_no_bit(model: Any, rows: Rows) -> None:
    reader = Reader(model, PLACES, fast=True)
    with_, without = (read(reader, rows, prefetch=prefetch) for prefetch in (True, False))
    for one, other in zip(with_, without, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in PLACES)


@pytest.mark.parametrize("prefetch", [False, True])
def test_values_that_are_not_finite_are_told_once_per_block(
    model: Any, rows: Rows, prefetch: bool
) -> None:
    reader = Reader(model, PLACES)
    model.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"mlp_out\.1 holds values that are not finite"):
        read(reader, rows, prefetch=prefetch)


def test_a_block_is_read_with_few_forwards_and_one_look(
    model: Any, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    monkeypatch.setattr(activations, "check_finite", lambda name, x: looks.append((name, len(x))))
    n = [len(block[PLACES[0]]) for block in read(Reader(model, PLACES), rows)]
    assert looks == [(name, size) for size in n for name in PLACES]


# --- precision -------------------------------------------------------------------------------------


def test_errors_are_those_of_a_rounded_copy(model: Any, rows: Rows) -> None:
    spec = HarvestSpec(calibration_rows=60, outlier_ratio=1e6)
    reader = Reader(model, PLACES)
    errors = bf16_errors(reader, rows, spec, 0)
    assert next(model.parameters()).dtype == torch.float32  # the model is left alone
    usable = torch.from_numpy(rows.usable())
    ids = torch.from_numpy(rows.token_ids).long()
    exact = {name: x[usable] for name, x in reader.read(ids).items()}
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    for name, x in Reader(model, PLACES).read(ids).items():
        wrong = (x[usable].float() - exact[name]).square().sum()
        expected = float(wrong / (exact[name] - exact[name].mean(0)).square().sum())
        assert errors[name] == pytest.approx(expected, rel=0.2)
        assert 1e-7 < errors[name] < 1e-2


def test_outliers_do_not_count_in_the_error(model: Any, rows: Rows) -> None:
    model.model.embed_tokens.weight[5] = 2.0**14  # large, and exact in bfloat16
    reader = Reader(model, ["resid_pre.0"])
    spec = {"calibration_rows": 60}
    without = bf16_errors(reader, rows, HarvestSpec(outlier_ratio=5.0, **spec), 0)
    with_ = bf16_errors(reader, rows, HarvestSpec(outlier_ratio=1e9, **spec), 0)
    model.model.embed_tokens.weight[5] = 0
    expected = bf16_errors(reader, rows, HarvestSpec(outlier_ratio=1e9, **spec), 0)
    assert without["resid_pre.0"] == pytest.approx(expected["resid_pre.0"], rel=0.2)
    assert with_["resid_pre.0"] < expected["resid_pre.0"] / 100


@pytest.mark.parametrize(
    ("asked", "bound", "has", "used"),
    [
        ("fp32", 0.5, True, "fp32"),
        ("auto", 0.5, True, "bf16"),
        ("auto", 1e-9, True, "fp32"),
        ("auto", 0.5, False, "fp32"),
        ("bf16", 1e-9, False, "bf16"),
    ],
)
def test_the_decision(
    asked: Any,
    bound: float,
    has: bool,
    used: str,
    model: Any,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harvest_precision, "_has_bf16_products", lambda: has)
    spec = HarvestSpec(precision=asked, bf16_error_bound=bound, calibration_rows=8)
    truncate(model, PLACES)
    reader, decision = arm_reader(model, PLACES, rows, spec, 0)
    assert decision.used == used
    dtypes = {p.dtype for p in reader.model.parameters()}
    assert dtypes == {torch.float32 if used == "fp32" else torch.bfloat16}
    buffers = {b.dtype for b in reader.model.buffers() if b.is_floating_point()}
    assert buffers == {torch.float32}
    assert (decision.errors is None) == (asked == "fp32" or (asked == "auto" and not has))
    found = read(reader, rows)
    assert all(x.dtype == torch.float32 for block in found for x in block.values())
    again = HarvestPrecision.from_record(json.loads(json.dumps(decision.record())))
    assert again == decision


def test_a_decision_is_followed_and_not_made_again(
    model: Any, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvest_precision, "_decide", lambda *_: pytest.fail("decided again"))
    earlier = HarvestPrecision("auto", "bf16", 1e-3, {"resid_post.0": 1e-4}, "within the bound")
    reader, decision = arm_reader(model, PLACES, rows, HarvestSpec(precision="auto"), 0, earlier)
    assert decision is earlier
    assert next(reader.model.parameters()).dtype == torch.bfloat16


def test_a_model_that_does_not_run_in_bfloat16(
    model: Any, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvest_precision, "_has_bf16_products", lambda: True)

    def refuse(*_: Any) -> None:
        raise RuntimeError('"odd_kernel" not implemented for BFloat16')

    monkeypatch.setattr(harvest_precision, "bf16_errors", refuse)
    _, decision = arm_reader(model, PLACES, rows, HarvestSpec(precision="auto"), 0)
    assert (decision.used, decision.errors) == ("fp32", None)
    assert "odd_kernel" in decision.reason
    with pytest.raises(ModelError, match="odd_kernel"):
        arm_reader(model, PLACES, rows, HarvestSpec(precision="bf16"), 0)


def text_rows(bos: int | None, n: int = 12) -> Rows:
    """Rows of ordinary tokens 5 to 59, the first of which is BOS where there is one."""
    ids = np.random.default_rng(1).integers(5, 60, (n, 20)).astype(np.int32)
    if bos is not None:
        ids[:, 0] = bos
    lengths = np.full(n, 18, np.int32)
    ids[:, 18:] = 0
    return Rows(ids, lengths, np.zeros(n, np.int32), ("d",))


@pytest.mark.parametrize("bos", [1, 70, None])
def test_random_rows_repeat_a_block_of_ids_that_occur(bos: int | None) -> None:
    text = text_rows(bos)
    fresh, repeated = (random_rows(text, 6, 9, 3, again) for again in (False, True))
    ahead = 0 if bos is None else 1
    for rows in (fresh, repeated):
        assert rows.token_ids.shape == (6, 18 + ahead)
        assert rows.token_ids.dtype == np.int32
        assert (rows.lengths == 18 + ahead).all()
        assert len(rows.names) == 6
        np.testing.assert_array_equal(rows.documents, np.arange(6))
        assert np.isin(rows.token_ids[:, ahead:], np.unique(text.token_ids[text.usable()])).all()
        assert bos is None or (rows.token_ids[:, 0] == bos).all()
    first, second = (slice(ahead, ahead + 9), slice(ahead + 9, None))
    again = repeated.token_ids
    np.testing.assert_array_equal(again[:, first], again[:, second])
    np.testing.assert_array_equal(fresh.token_ids[:, second], again[:, second])
    assert (fresh.token_ids[:, first] == again[:, first]).mean() < 0.2
    np.testing.assert_array_equal(random_rows(text, 6, 9, 3, True).token_ids, again)
    assert (random_rows(text, 6, 9, 4, True).token_ids != again).any()


def test_repeats_are_read_at_the_positions_that_count(model: Any) -> None:
    text = text_rows(1)
    fresh, repeated = (random_rows(text, 6, 9, 3, again) for again in (False, True))
    reader = Reader(model, PLACES)
    every = harvest_repeats(reader, fresh, repeated, 9)
    # rows are BOS and two blocks of 9: the repeated tokens read are those at 11 to 18
    some = harvest_repeats(reader, fresh, repeated, 9, usable_positions((0, 16, 2), 24))
    for name, x in some.items():
        by_row = every[name].reshape(6, 8, -1)
        torch.testing.assert_close(x.reshape(6, -1, by_row.shape[2]), by_row[:, [1, 3]])
    assert harvest_repeats(reader, fresh, repeated, 9, usable_positions((0, 11), 24)) == {}


@pytest.mark.parametrize("bos", [1, None])
def test_repeats_are_read_where_the_second_block_is_known(model: Any, bos: int | None) -> None:
    text = text_rows(bos)
    fresh, repeated = (random_rows(text, 6, 9, 3, again) for again in (False, True))
    found = harvest_repeats(Reader(model, PLACES), fresh, repeated, 9)
    assert set(found) == {f"{name}.{kind}" for name in PLACES for kind in ("fresh", "repeated")}
    for kind, rows in (("fresh", fresh), ("repeated", repeated)):
        ids = torch.from_numpy(rows.token_ids).long()
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        expected = states[1][:, -8:].reshape(48, -1)
        torch.testing.assert_close(found[f"resid_post.0.{kind}"], expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found["mlp_out.1.fresh"], found["mlp_out.1.repeated"], atol=1e-3)

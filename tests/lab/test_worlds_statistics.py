"""A user's statistic is found, held to its contract and scored beside ours; mistakes are one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from command_line import call
from sae_placebo.core.errors import NotEstimable, SpecError, StoreError
from sae_placebo.lab.worlds import PRESETS, STATISTICS, World, factored
from sae_placebo.lab.worlds.saving import load_worlds, save_world, write_worlds
from sae_placebo.lab.worlds.scoring import score_world, site_truths
from sae_placebo.lab.worlds.statistic_scores import (
    Source,
    score_statistics,
    stored,
    use_settings,
)
from sae_placebo.lab.worlds.statistic_tables import in_lines
from sae_placebo.lab.worlds.user_statistics import UserStatistic, find_statistic, find_statistics

SITE = "resid_pre.0"
QUICK = (
    "firings=8",
    "null_firings=4",
    "documents=4",
    "nulls=3",
    "uniform_firings=8",
    "masks.n_masks=2",
    "masks.n_pivots=0",
    "masks.n_tokens=60",
    "worst.n_tokens=60",
    "worst.steps=1",
)
MINE = """
import numpy as np

calls = []


class Held:
    def share(subject, directions):
        calls.append(len(directions))
        directions.vectors[:] = 0
        subject.activations.zero_()
        return directions.n_active / directions.amounts.shape[0]


def alone(subject):
    return 0


def short(subject, directions):
    return np.ones(len(directions) + 1)


def broken(subject, directions):
    raise KeyError("what\\nis this")


def endless(subject, directions):
    return np.where(np.arange(len(directions)) == 1, np.inf, 0)


def words(subject, directions):
    return ["use"] * len(directions)


def leaves(subject, directions):
    raise SystemExit(4)


def careless(subject, directions):
    import torch

    model = subject.downstream.model
    model.model.layers[0].register_forward_hook(lambda module, given, out: out * 0.1)
    for parameter in model.parameters():
        parameter.data *= 2
    subject.tokens.rows.token_ids[:] = 0
    torch.set_default_dtype(torch.float64)
    return torch.zeros(len(directions), dtype=torch.bfloat16)


VALUE = 3
"""


@pytest.fixture(scope="module")
def world() -> World:
    small = PRESETS["small"].model_copy(
        update={"n_b": 4, "margin_nats": 0.05, "passenger_norm": 1.0}
    )
    return factored(small, seed=3)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of statistics, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_of_test", raising=False)
    (tmp_path / "mine_of_test.py").write_text(MINE)
    return tmp_path


def source(world: World) -> Source:
    return Source("a world", 3, lambda progress: [world])


def test_it_stands_beside_ours_and_is_called_anew_where_ours_is_kept(
    world: World, here: Path
) -> None:
    found = find_statistics(["mine_of_test:Held.share"])
    spec, out = use_settings(QUICK), here / "out"
    arguments: dict[str, Any] = {"hookpoints": [SITE], "folder": out}
    first = score_statistics(found, [source(world)], spec, "values", **arguments)
    (site,) = first.sites
    assert tuple(site.statistics) == ("mine_of_test:Held.share", *STATISTICS)
    # it is one of the simpler statistics, and what it did to its copies is without effect
    assert site.statistics["mine_of_test:Held.share"] == site.statistics["firing rate"]
    assert {site.auroc(name).n for name in site.statistics} == {len(site.names)}
    plain = score_world(world, SITE, 3, spec, "values")
    assert site.auroc("effect") == plain.separation("effect")
    assert 0 <= site.auroc("effect").low <= site.auroc("effect").value
    calls = sys.modules["mine_of_test"].calls
    (kept,) = (out / "sites").iterdir()
    stamp = kept.stat().st_mtime_ns
    again = score_statistics(found, [source(world)], spec, "values", **arguments)
    assert len(calls) == 2
    assert kept.stat().st_mtime_ns == stamp
    assert again == first
    table = pd.read_parquet(out / "scores.parquet")
    assert list(table["statistic"]) == list(site.statistics)
    assert not table["ours"][0]
    assert table["ours"][1:].all()
    units = pd.read_parquet(out / "units.parquet")
    assert list(units["unit"]) == list(site.names)
    assert set(units["truth"]) <= {"used", "passenger", "neither"}
    assert json.loads((out / "scores.json").read_text())["units"] == "values"
    text = in_lines(first)
    assert text.startswith(f"{SITE}: ")
    for name in site.statistics:
        assert name in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine_of_test", "names no function"),
        ("mine_of_test:no such", "names no function"),
        ("mine_of_test:shrot", "has no function 'shrot'; it has Held, alone"),
        ("mine_of_test:VALUE", "is no function, but a value of type int"),
        ("mine_of_test.alone", "cannot be called with two arguments"),
        ("mine_at_home:x", "there is no module 'mine_at_home'"),
        ("needs_what_is_missing:x", "needs 'not_installed_here', which is not installed"),
        ("fails_at_once:x", r"cannot be imported \(ZeroDivisionError"),
        ("leaves_at_once:x", r"cannot be imported \(SystemExit: 3"),
    ],
)
def test_what_is_no_statistic_is_said(name: str, said: str, here: Path) -> None:
    (here / "needs_what_is_missing.py").write_text("import not_installed_here")
    (here / "fails_at_once.py").write_text("1 / 0")
    (here / "leaves_at_once.py").write_text("raise SystemExit(3)")
    before = list(sys.path)
    with pytest.raises(SpecError, match=said):
        find_statistic(name)
    assert sys.path == before


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            "short",
            r"'mine_of_test:short' returned shape \(\d+,\) at resid_pre.0 of .*: return one number per",
        ),
        ("broken", r"'mine_of_test:broken' failed at .* \(KeyError: 'what\\nis this'\)$"),
        ("endless", r"'mine_of_test:endless' is inf for direction 1 at .* not finite for 1 of"),
        ("words", r"'mine_of_test:words' returned what is no array of numbers"),
        ("leaves", r"'mine_of_test:leaves' failed at .* \(SystemExit: 4\)$"),
    ],
)
def test_what_a_statistic_may_not_do_is_said(
    function: str, said: str, world: World, here: Path
) -> None:
    found = find_statistics([f"mine_of_test:{function}"])
    with pytest.raises(SpecError, match=said):
        score_statistics(found, [source(world)], use_settings(QUICK), "values", hookpoints=[SITE])


def test_what_a_statistic_does_to_the_model_is_without_effect(world: World, here: Path) -> None:
    spec = use_settings(QUICK)
    before = torch.get_default_dtype()
    found = []
    for name in ("mine_of_test:Held.share", "mine_of_test:careless"):
        scores = score_statistics(
            find_statistics([name]), [source(world)], spec, "values", hookpoints=[SITE]
        )
        found.append(
            [{name: site.statistics[name] for name in STATISTICS} for site in scores.sites]
        )
    assert torch.get_default_dtype() == before
    assert found[0] == found[1]


def test_what_is_kept_is_read_only_as_it_was_written(world: World, here: Path) -> None:
    nothing, spec = [UserStatistic("f", lambda s, d: np.ones(len(d)))], use_settings(QUICK)
    arguments: dict[str, Any] = {"hookpoints": [SITE], "folder": here / "out"}
    first = score_statistics(nothing, [source(world)], spec, "values", **arguments)
    (kept,) = (here / "out" / "sites").iterdir()
    written = kept.read_text()
    record = json.loads(written)
    for changed in (
        {**record, "kinds": record["kinds"][:3]},
        {name: value for name, value in record.items() if name != "names"},
        {name: value for name, value in record.items() if name != "seal"},
        [],
    ):
        kept.write_text(json.dumps(changed))
        assert score_statistics(nothing, [source(world)], spec, "values", **arguments) == first
        assert kept.read_text() == written


def test_a_world_counts_once(world: World, tmp_path: Path) -> None:
    nothing = [UserStatistic("f", lambda s, d: pytest.fail("it was scored"))]
    for name in ("a", "b"):
        save_world(world, tmp_path / name)
    for sources in (
        [stored(tmp_path, 0)],
        [stored(tmp_path / "a", 0), stored(tmp_path / "b", 0)],
        [stored(tmp_path / "a", 0), source(world)],
    ):
        with pytest.raises(SpecError, match=r"and would count as two: leave one out"):
            score_statistics(nothing, sources[::-1], hookpoints=[SITE])


def test_settings_and_sites_are_refused_by_name(world: World) -> None:
    nothing = [UserStatistic("f", lambda s, d: np.ones(len(d)))]
    with pytest.raises(SpecError, match=r"Did you mean 'resid_pre\.0'"):
        score_statistics(nothing, [source(world)], hookpoints=["resid_pr.0"])
    assert use_settings(QUICK).masks.n_masks == 2
    for text, said in (
        ("firing=8", "no setting of use is called 'firing'. Did you mean 'firings'"),
        ("masks.masks=8", "no setting of use masks is called 'masks'. Did you mean 'n_masks'"),
        ("firings=0", "settings of use: firings = 0"),
        ("firings=x", "settings of use: firings"),
    ):
        with pytest.raises(SpecError, match=said):
            use_settings([text])
    with pytest.raises(SpecError, match="as one of ours is"):
        score_world(
            world, SITE, 3, use_settings(QUICK), "values", {"effect": lambda s, d: d.n_active}
        )
    few = use_settings(["documents=1_000_000".replace("_", "")])
    with pytest.raises(NotEstimable, match="no site has scores"):
        score_statistics(nothing, [source(world)], few, "values", hookpoints=[SITE])
    assert site_truths(world, SITE, 3)


def test_worlds_are_read_from_a_folder_of_folders(world: World, tmp_path: Path) -> None:
    for name in ("b", "a"):
        save_world(world, tmp_path / "worlds" / name)
    assert [found.name for found in load_worlds(tmp_path / "worlds")] == [world.name] * 2
    assert len(stored(tmp_path / "worlds" / "a", 0).worlds(None)) == 1  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="holds no world"):
        load_worlds(tmp_path)


def test_the_command_builds_and_scores(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = PRESETS["small"].model_copy(update={"steps": 3, "margin_nats": 99.0, "train_rows": 64})
    monkeypatch.setitem(PRESETS._entries, "quick", quick)
    settings = [word for text in QUICK for word in ("--use-set", text)]
    line = ("world", "score", "mine_of_test:Held.share", "--kind", "factored", "--preset", "quick")
    sites = ("--seeds", 2, "--units", "values", "--hookpoint", SITE)
    assert call(monkeypatch, *line, *sites, *settings, "--out", here / "out") == 0
    said = capsys.readouterr()
    assert f"{SITE}: " in said.out
    assert "2 worlds" in said.out
    assert "mine_of_test:Held.share" in said.out
    assert "; whole " in said.err
    assert pd.read_parquet(here / "out" / "scores.parquet")["world"].nunique() == 2
    assert call(monkeypatch, *line[:3]) == 1
    assert "no world is named" in capsys.readouterr().err
    assert call(monkeypatch, *line[:3], "--world", here) == 1
    assert "holds no world" in capsys.readouterr().err
    write_worlds("twins", here / "pair", 1, preset="quick")
    assert len(load_worlds(here / "pair")) == 2

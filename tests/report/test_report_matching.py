"""The report's answer to whether arms were matched, and the table behind it."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from sae_placebo.latents.metrics.sparsity import l0_matches
from sae_placebo.report import read_tables, render
from synthetic_trial import Settings, write_trial


def test_the_page_says_in_red_which_arms_were_not_matched(tmp_path: Path) -> None:
    page = render(read_tables(write_trial(tmp_path / "a", Settings(latents=20))))
    head = page[page.index("<header>") : page.index("</header>")]
    assert 'class="alarm' in head
    assert "not matched" in head
    assert "redraw_<wbr>keep_<wbr>embeddings" in head
    assert "redraw</span>" not in head
    section = page[page.index('<section id="matching">') :]
    section = section[: section.index("</section>")]
    assert section.count('<td class="alarm">not matched') == 1
    assert "−12.0%" in section

    two = Settings(latents=20, arms=("trained", "redraw"))
    page = render(read_tables(write_trial(tmp_path / "b", two)))
    assert not _alarmed(page)


def test_a_trial_without_the_table_says_so(tmp_path: Path) -> None:
    folder = write_trial(tmp_path, Settings(latents=20, drop=("matching",)))
    page = render(read_tables(folder))
    assert "no matching.parquet" in page
    assert not _alarmed(page)


def _alarmed(page: str) -> bool:
    """Return whether the page says in red, at its head or in its section, that arms were not matched."""
    head = page[page.index("<header>") : page.index("</header>")]
    section = page[page.index('<section id="matching">') :]
    return 'class="alarm' in head + section[: section.index("</section>")]


def measured(**l0: list[float | None]) -> pd.DataFrame:
    rows = [
        {"arm": arm, "hookpoint": "resid_post.1", "sae": "main", "metric": metric}
        | {"value": value, "n": 500, "reason": None if value is not None else "no tokens"}
        for arm, values in l0.items()
        for value in values
        for metric in ("l0", "median_density")
    ]
    return pd.DataFrame(rows)


def test_matches_by_hand() -> None:
    table = measured(a=[30.0, 34.0], b=[30.0, 31.0], c=[29.0], d=[None])
    found = l0_matches(table, {"main": 40.0}, "a", 0.05).set_index("arm")
    assert found["l0"].tolist()[:3] == [32.0, 30.5, 29.0]
    assert found.loc["a", ["l0_least", "l0_most", "n_saes"]].tolist() == [30.0, 34.0, 2]
    assert found["relative_to_trained"].tolist()[:3] == pytest.approx([0, -1.5 / 32, -3 / 32])
    assert found["relative_to_target"].tolist()[:3] == pytest.approx([-0.2, -9.5 / 40, -11 / 40])
    assert found["matched"].tolist()[:3] == [True, True, False]
    assert found.loc["d", "reason"] == "no tokens"
    assert found.loc["d", ["l0", "matched", "relative_to_trained"]].isna().all()
    assert found.loc["d", "n_saes"] == 0


def test_without_a_target_or_a_living_reference_what_is_unknown_is_null() -> None:
    table = measured(a=[0.0], b=[3.0])
    found = l0_matches(table, {"main": None}, "a", 0.05).set_index("arm")
    assert found["target"].isna().all()
    assert found["relative_to_target"].isna().all()
    assert found["matched"].isna().all()
    assert "no active latents" in found.loc["b", "reason"]

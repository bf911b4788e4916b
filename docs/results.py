"""The tables of a results page, from a finished trial.

    python docs/results.py runs/trials/structure-smollm2 docs/results/structure-smollm2.md

Each table stands between `<!-- name -->` and `<!-- /name -->` in the page and is written anew; the prose
around stays. Numbers are those of the trial's tables; nothing is typed by hand.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
from results_audits import TABLES as AUDIT_TABLES
from results_given import TABLES as GIVEN_TABLES
from results_use import TABLES as USE_TABLES
from results_use import markdown

from sae_placebo.latents.classes.classification import CLASS_NAMES
from sae_placebo.latents.ladder.fitting import RUNGS
from sae_placebo.latents.metrics.replicated import CROSSED
from sae_placebo.latents.origin.rule import ORIGINS
from sae_placebo.report.sections.claims import FIRST

LEAST = 0.005
"""Share that a class must reach in some arm to have a row."""


class Page:
    """What the tables are made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.effects = self.table("effects")
        self.arms = list(dict.fromkeys([*self.effects["arm"], *self.effects["control"]]))

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / f"{name}.parquet")

    def places(self) -> Iterator[str]:
        yield from dict.fromkeys(self.effects["hookpoint"])

    def arm(
        self, arm: str, hookpoint: str, metric: str, scale: float = 100, digits: int = 1
    ) -> str:
        """Return an arm's own value with its interval."""
        own = self.effects
        own = own[(own["hookpoint"] == hookpoint) & (own["metric"] == metric)]
        for side in ("arm", "control"):
            for row in own[own[side] == arm].to_dict("records"):
                if pd.notna(row[f"{side}_value"]):
                    return said(row, f"{side}_", scale, digits)
        curve = self.table("fit_curve") if (self.folder / "fit_curve.parquet").exists() else None
        if curve is not None:
            here = curve[(curve["arm"] == arm) & (curve["hookpoint"] == hookpoint)]
            withheld = here[here["metric"] == metric].sort_values("portion")["withheld"].dropna()
            if len(withheld):
                return brief(f"withheld: {withheld.iloc[-1]}")
        reasons = own[(own["arm"] == arm) | (own["control"] == arm)]["reason"].dropna()
        mine = [why.split(": ", 1)[1] for why in reasons if why.startswith(f"{arm}: ")]
        why = mine[0] if mine else next(iter(reasons), "")
        return brief(why) if why else "–"


def brief(why: str) -> str:
    """Return a reason in few words: how far twice the text moves what is withheld, or its beginning."""
    moved = re.search(r"withheld: .*moved it by (\S+ ± [\d.e-]+)", why)
    if moved:
        return f"withheld ({moved[1]})"
    return "withheld" if "withheld" in why else f"– ({why[:80]})"


def said(row: dict[str, Any], prefix: str, scale: float, digits: int) -> str:
    value, low, high = (row[f"{prefix}{name}"] for name in ("value", "low", "high"))
    text = f"{scale * value:.{digits}f}"
    if pd.isna(low):
        return f"{text} (no interval)"
    return f"{text} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def by_arm(page: Page, names: list[str], metric: Callable[[str], str], **shown: Any) -> str:
    parts = []
    for hookpoint in page.places():
        rows = [
            [n, *(page.arm(a, hookpoint, metric(n), **shown) for a in page.arms)] for n in names
        ]
        parts.append(f"**{hookpoint}**\n\n" + markdown(["", *page.arms], rows))
    return "\n\n".join(parts)


def classes(page: Page) -> str:
    latents = page.table("latents")
    shares = latents.groupby(["arm", "hookpoint"])["class"].value_counts(normalize=True)
    most = shares.groupby("class").max()
    names = [
        n
        for n in CLASS_NAMES
        if most.get(n, 0) >= LEAST or n in ("single_token", "arbitrary_subset")
    ]
    left = [n for n in CLASS_NAMES if n not in names]
    n = latents.groupby("arm").size()
    text = by_arm(page, names, lambda name: f"share_{name}")
    return (
        f"{text}\n\nPercent of latents, 95% interval. Below {LEAST:.1%} in every arm: "
        f"{', '.join(left) or 'none'}. n, all SAEs and layers together: "
        + ", ".join(f"{arm} {count:,}" for arm, count in n.items())
        + "."
    )


def verdicts(page: Page) -> str:
    return by_arm(page, list(ORIGINS), lambda name: f"origin_{name}")


def partners(page: Page) -> str:
    names = {
        "in the placebo SAE": "has_placebo_partner",
        "in the SAE of another seed": "has_seed_partner",
    }
    text = by_arm(page, list(names), names.__getitem__)
    nulls = page.table("measurements")
    nulls = nulls[nulls["metric"].isin(names.values())].groupby("metric")["null_value"].mean()
    return f"{text}\n\nNull, tokens moved: " + ", ".join(
        f"{n} {100 * v:.2f}%" for n, v in nulls.items()
    )


def ladder(page: Page, prefix: str) -> str:
    known = set(page.effects["metric"])
    old = f"{prefix}r2_token" not in known  # tables of before the metric was renamed
    stem = prefix.replace("ladder_", "") if old else prefix
    return by_arm(page, list(RUNGS[1:]), lambda rung: f"{stem}r2_{rung}", scale=1, digits=3)


CURVES = (
    *("origin_explained", "origin_not_explained", "stable_not_explained"),
    *("explained_up_to_window", "ladder_r2_window", "ladder_r2_placebo_readout"),
)


def fit_curve(page: Page) -> str:
    """Return how the ladder's main numbers move with the text that it is fitted on."""
    table = page.table("fit_curve")
    table = table[table["metric"].isin(CURVES)]
    rows = []
    for (metric, hookpoint, arm), part in table.groupby(["metric", "hookpoint", "arm"], sort=False):
        part = part.sort_values("portion")
        last = part.iloc[-1]
        points = " → ".join("–" if pd.isna(v) else f"{v:.3f}" for v in part["value"])
        moved = "–"
        if pd.notna(last["change"]):
            moved = f"{last['change']:+.3f}"
        if pd.notna(last["change_se"]):
            moved += f" ± {1.64 * last['change_se']:.3f}"
        end = f"– ({str(last['end_reason'])[:60]})"
        if pd.notna(last["end"]):
            end = f"{last['end']:.3f} [{last['end_low']:.3f}, {last['end_high']:.3f}]"
        told = "told" if pd.isna(last["withheld"]) else "withheld"
        rows.append([metric, hookpoint, arm, points, moved, told, end])
    sizes = ", ".join(f"{n:,}" for n in sorted(table["fit_tokens"].unique()))
    head = ["number", "hookpoint", "arm", "by portion", "last doubling", "", "end of the curve"]
    return f"Fitted on {sizes} tokens.\n\n{markdown(head, rows)}"


def bits(page: Page) -> str:
    table = page.table("baselines")
    first = table["distortion"].dropna().iloc[0]
    table = table[(table["distortion"] == first) | table["distortion"].isna()]
    parts = []
    for hookpoint in page.places():
        own = table[table["hookpoint"] == hookpoint]
        rows = []
        # an SAE has two codes: its own encoder's and that by pursuit
        names = own["baseline"].where(own["reading"].isna(), "sae, " + own["coding"].astype(str))
        for baseline in dict.fromkeys(names):
            cells = [baseline]
            for arm in page.arms:
                part = own[(own["arm"] == arm) & (names == baseline)]
                value = part["bits"].mean()
                why = part["reason"].dropna()
                cells.append(
                    f"{value:.0f}"
                    if pd.notna(value)
                    else f"– ({why.iloc[0][:60]})"
                    if len(why)
                    else "–"
                )
            rows.append(cells)
        rows.append(
            [
                "marginal structure above a Gaussian's, beyond the trained arm's best method",
                *(
                    page.arm(a, hookpoint, "marginal_structure_above_gaussian", 1, 1)
                    for a in page.arms
                ),
            ]
        )
        parts.append(f"**{hookpoint}**\n\n" + markdown(["bits per token", *page.arms], rows))
    return f"At {first:.0%} of the variance left.\n\n" + "\n\n".join(parts)


CONTRASTS = [
    *("coverage_context", "coverage_token", "mean_token_entropy_bits"),
    *("explained_variance_above_gaussian", "bits_added_by_latents"),
    "marginal_structure_above_gaussian",
    *("origin_not_explained", "origin_explained", "stable_not_explained", "has_seed_partner"),
    *("has_placebo_partner", "share_n_gram", "share_single_token", "share_arbitrary_subset"),
]
"""Metrics whose contrasts a page shows, in order."""


def contrasts(page: Page) -> str:
    rows = []
    trained = page.arms[0]
    for row in page.effects.to_dict("records"):
        if row["metric"] not in CONTRASTS or row["arm"] != trained:
            continue
        scale, unit = (100, "points") if row["unit"] == "share" else (1, row["unit"])
        effect = {"value": row["effect"], "low": row["low"], "high": row["high"]}
        aa = {"value": row["aa_effect"], "low": row["aa_low"], "high": row["aa_high"]}
        digits = {"bits": 2, "F1": 3}.get(str(unit), 1)
        cells = [said(e, "", scale, digits) if pd.notna(e["value"]) else "–" for e in (effect, aa)]
        if pd.isna(row["effect"]):
            cells[0] = brief(str(row["reason"] or ""))
        rows.append([row["metric"], row["hookpoint"], row["control"], *cells, unit])
    head = ["metric", "hookpoint", f"{trained} minus", "effect", "A/A", "unit"]
    return markdown(
        head, sorted(rows, key=lambda cells: (CONTRASTS.index(cells[0]), cells[1], cells[2]))
    )


def claims(page: Page) -> str:
    rows = []
    for row in page.table("claims").to_dict("records"):
        if not any(fnmatchcase(row["metric"], pattern) for pattern in FIRST):
            continue
        scale, unit = (100, "points") if row["unit"] == "share" else (1, row["unit"])
        effect = {"value": row["effect"], "low": row["low"], "high": row["high"]}
        digits = {"bits": 2, "F1": 3}.get(str(unit), 1)
        shown = "–" if pd.isna(row["effect"]) else said(effect, "", scale, digits)
        why = "" if row["claimed"] else str(row["reason"])
        why = why.split(": withheld")[0] + ": withheld" if ": withheld" in why else why[:90]
        rows.append([row["metric"], row["hookpoint"], row["against"], shown, unit, why])
    claimed = [[*row[:5], "yes"] for row in rows if not row[5]]
    head = ["metric", "hookpoint", "nearest fair placebo", "smallest effect", "unit", "claimed"]
    return markdown(head, claimed + [[*row[:5], f"no: {row[5]}"] for row in rows if row[5]])


def replicated(page: Page) -> str:
    names = {name: f"replicated_{name}" for name in CROSSED}
    names |= {"with a rule": "replicated_with_rule", "unnamed": "replicated_unnamed"}
    text = by_arm(page, list(names), names.__getitem__)
    latents = page.table("latents")
    own = latents[latents["has_seed_partner"] == 1]
    n = ", ".join(f"{arm} {count:,}" for arm, count in own.groupby("arm").size().items())
    return f"{text}\n\nPercent of the latents that another seed has too, 95% interval. n: {n}."


def decoys(page: Page) -> str:
    rows = []
    for row in page.table("decoys").to_dict("records"):
        found = row["reason"]
        if pd.notna(row["passing"]):
            found = (
                f"{row['passing']:.0f} of {row['n_targets']} [{row['low']:.0f}, {row['high']:.0f}]"
            )
        rows.append([row["hookpoint"], row["score"], str(found)])
    return markdown(["hookpoint", "score", "trained latents that pass"], rows)


def mechanism(page: Page) -> str:
    rows = []
    for row in page.table("mechanism").to_dict("records"):
        estimate = ""
        if pd.notna(row["estimate"]):
            estimate = f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        rows.append(
            [row["says"], row["outcome"], estimate, str(row["reason"] or ""), str(row["n"])]
        )
    return markdown(["prediction", "outcome", "estimate", "why not", "n"], rows)


TABLES: dict[str, Callable[[Page], str]] = {
    "contrasts": contrasts,
    "claims": claims,
    "classes": classes,
    "replicated": replicated,
    "verdicts": verdicts,
    "partners": partners,
    "ladder by fitted text": fit_curve,
    "ladder of latents": lambda page: ladder(page, "ladder_"),
    "ladder of activations": lambda page: ladder(page, "activations_"),
    "bits": bits,
    "decoys": decoys,
    "mechanism": mechanism,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("trial", type=Path)
    parser.add_argument("page", type=Path)
    arguments = parser.parse_args()
    text, page = arguments.page.read_text(encoding="utf-8"), Page(arguments.trial)
    of_folder = USE_TABLES | AUDIT_TABLES | GIVEN_TABLES
    others = {name: lambda page, make=make: make(page.folder) for name, make in of_folder.items()}
    for name, make in (TABLES | others).items():
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        if opening in text:
            pattern = re.escape(opening) + ".*?" + re.escape(closing)
            filled = f"{opening}\n\n{make(page)}\n\n{closing}"
            text = re.sub(pattern, lambda _, new=filled: new, text, flags=re.DOTALL)
    arguments.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

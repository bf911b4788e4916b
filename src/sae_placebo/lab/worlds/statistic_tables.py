"""Scores of statistics as text: a table for each hookpoint, over all worlds that have it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_placebo.core.errors import in_one_line
from sae_placebo.lab.experiments.phase import mean_of
from sae_placebo.lab.text_tables import bounds, in_columns, number
from sae_placebo.lab.worlds.scoring import OURS
from sae_placebo.lab.worlds.statistic_scores import SiteScores, StatisticScores
from sae_placebo.report.wording import counted


def in_lines(scores: StatisticScores) -> str:
    """Return a table of AUROCs for each hookpoint, the user's statistics first.

    With one world, the interval is over its units; with several, the AUROC is the mean over worlds and the
    interval is Student's over worlds.
    """
    parts = []
    for hookpoint in dict.fromkeys(site.hookpoint for site in scores.sites):
        sites = [site for site in scores.sites if site.hookpoint == hookpoint]
        used, passengers = (sum(site.kinds.count(kind) for site in sites) for kind in (1, 0))
        of_kinds = f"{counted(used, 'used unit')} and {counted(passengers, 'passenger')}"
        head = f"{hookpoint}: {of_kinds}, {counted(len(sites), 'world')}"
        rows = [("", "AUROC", "95%", "units", "worlds", "")]
        rows += [_line(name, sites) for name in sites[0].statistics]
        parts.append(f"{in_one_line(head)}\n{in_columns(rows)}")
    refused = [f"left out: {name}: {reason}" for name, reason in scores.refused.items()]
    parts += [in_one_line(line) for line in refused]
    return "\n\n".join(parts)


def _line(name: str, sites: Sequence[SiteScores]) -> tuple[str, str, str, str, str, str]:
    found = [site.auroc(name) for site in sites]
    known = [one for one in found if np.isfinite(one.value)]
    title = f"  ours: {name}" if name in OURS else f"  {name}"
    if not known:
        return title, "none", "", "0", "0", found[0].reason
    n = sum(one.n for one in known)
    if len(known) == 1:
        interval = bounds(known[0].low, known[0].high, 3)
        return title, number(known[0].value, 3), interval, f"{n:,}", "1", "over units"
    mean = mean_of([{"value": one.value} for one in known], "value")
    interval, note = "", f"all {len(known)} worlds have this value"
    if mean.low is not None and mean.high is not None:
        # an AUROC lies between 0 and 1
        interval, note = bounds(max(0.0, mean.low), min(1.0, mean.high), 3), "over worlds"
    return title, number(mean.mean, 3), interval, f"{n:,}", str(len(known)), note

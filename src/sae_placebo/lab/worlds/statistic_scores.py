"""A user's statistic of use is scored on worlds, beside ours and the simpler ones.

Worlds are built, or read from folders, one after the other. At each site, every statistic gets the AUROC of
used units against passengers. Our part is the long one: it is kept in a folder, site by site, and a run that
was stopped goes on; the user's function is called anew each time, since it may have changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from sae_placebo.causal.use.rule import USES
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.errors import ModelError, NotEstimable, SpecError, StoreError, unknown_name
from sae_placebo.core.progress import Progress
from sae_placebo.core.sealing import read_json, seal_is_broken, sealed, write_json
from sae_placebo.core.spec import digest
from sae_placebo.core.time_left import Outlook, WorkPiece
from sae_placebo.lab.experiments.sweeps import parse_settings
from sae_placebo.lab.text_tables import prepared, write_results
from sae_placebo.lab.worlds.base import World
from sae_placebo.lab.worlds.saving import build_worlds, check_world, load_worlds
from sae_placebo.lab.worlds.scoring import (
    IS_PASSENGER,
    IS_USED,
    STATISTICS,
    ScoredValue,
    score_site,
    separation,
)
from sae_placebo.lab.worlds.units import judged_site
from sae_placebo.lab.worlds.user_statistics import UserStatistic

_FORMAT = 2
_SECONDS = {"build": 20.0, "score": 60.0}
"""Roughly how long a world takes; it only starts the foretold time."""
_KINDS = {IS_USED: "used", IS_PASSENGER: "passenger"}


@dataclass(frozen=True)
class Source:
    """Where worlds come from.

    Attributes:
        label: What it is called while it is worked on.
        seed: Seed of the SAEs and of all draws at the worlds' sites.
        worlds: Returns the worlds, showing its progress.
        is_built: Whether that takes long, as training does.
    """

    label: str
    seed: int
    worlds: Callable[[Progress], Sequence[World]] = field(compare=False)
    is_built: bool = True


def built(kind: str, seeds: Sequence[int], preset: str | None, program: str | None) -> list[Source]:
    """Return the worlds of a kind that are built with some seeds; see `saving.write_worlds`.

    Raises:
        SpecError: a seed is out of range, the kind, preset or program is unknown, or the kind takes no preset
            or program.
    """
    for seed in seeds:
        check_world(kind, seed, preset, program)

    def make(seed: int) -> Source:
        def worlds(progress: Progress) -> list[World]:
            return list(build_worlds(kind, seed, preset, program, progress).values())

        return Source(f"{kind} {program or preset or 'default'}, seed {seed}", seed, worlds)

    return [make(seed) for seed in seeds]


def stored(folder: Path, seed: int) -> Source:
    """Return the worlds that were written to a folder, or to folders inside it.

    Raises:
        StoreError: the folder holds no world, or one that is damaged.
    """
    found = load_worlds(folder)
    return Source(f"{str(folder)!r}", seed, lambda progress: found, is_built=False)


def use_settings(texts: Sequence[str]) -> UseSpec:
    """Return the settings of verdicts that texts such as `firings=16` and `masks.n_masks=4` give.

    Raises:
        SpecError: a setting is unknown, or a value is not allowed.
    """
    table: dict[str, Any] = {}
    for name, value in parse_settings(list(texts)).items():
        *outer, last = name.split(".")
        inner = table
        for part in outer:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise SpecError(f"{name} is within a setting that has a value already")
        inner[last] = value
    try:
        return UseSpec.model_validate(table)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        if first["type"] == "extra_forbidden":
            raise SpecError(_unknown_setting(first["loc"])) from None
        place = ".".join(str(part) for part in first["loc"])
        cause = first.get("ctx", {}).get("error") or first["msg"]
        where = f"{place} = {first['input']!r:.80}: " if place else ""
        raise SpecError(f"settings of use: {where}{cause}") from None


def _unknown_setting(place: Sequence[int | str]) -> str:
    """Return the sentence for a setting of use that does not exist, with those beside it."""
    *outer, name = map(str, place)
    spec: Any = UseSpec
    for part in outer:
        spec = spec.model_fields[part].annotation
    return unknown_name(" ".join(["setting of use", *outer]), name, spec.model_fields)


@dataclass(frozen=True)
class SiteScores:
    """The numbers of all statistics at one site of a world.

    Attributes:
        world: Name of the world.
        hookpoint: Name of the site's hookpoint.
        names: What each unit stands for, as `variable=value`, or `none`.
        kinds: Truth of each unit: `IS_USED`, `IS_PASSENGER` or `IS_NEITHER`.
        verdicts: Our verdict on each unit, one of `USES`.
        statistics: A value for each unit, by statistic; None where there is none.
        reasons: Why a statistic is missing, by its name.
    """

    world: str
    hookpoint: str
    names: Sequence[str]
    kinds: Sequence[int]
    verdicts: Sequence[str]
    statistics: Mapping[str, Sequence[float | None]]
    reasons: Mapping[str, str]

    def auroc(self, statistic: str) -> ScoredValue:
        """Return the AUROC of used units against passengers, or NaN with a reason."""
        values = np.array([np.nan if v is None else v for v in self.statistics[statistic]])
        kinds, known = np.array(self.kinds), np.isfinite(values)
        if not known.any() and statistic in self.reasons:
            nan = float("nan")
            return ScoredValue(nan, nan, nan, 0, self.reasons[statistic])
        used, passenger = (values[known & (kinds == kind)] for kind in (IS_USED, IS_PASSENGER))
        return separation(used, passenger)


@dataclass(frozen=True)
class StatisticScores:
    """All sites that were scored.

    Attributes:
        sites: The sites, world after world.
        refused: Why a site or a world has no scores, by what it is called.
    """

    sites: Sequence[SiteScores]
    refused: Mapping[str, str]


def score_statistics(
    statistics: Sequence[UserStatistic],
    sources: Sequence[Source],
    spec: UseSpec | None = None,
    units: Literal["latents", "values"] = "latents",
    *,
    hookpoints: Sequence[str] = (),
    folder: Path | None = None,
    progress: Progress | None = None,
) -> StatisticScores:
    """Score a user's statistics, ours and the simpler ones at the sites of worlds.

    Args:
        statistics: The user's, one or more.
        sources: Where the worlds come from.
        spec: Settings of our verdicts; None takes the defaults.
        units: The directions; see `scoring.score_world`.
        hookpoints: Names of the sites; all of a world's if there are none.
        folder: Where tables are written, `scores.parquet` and `units.parquet`, both as JSON as well. Our
            part is kept in `sites/` inside. None writes nothing.
        progress: Shows the work, and how long all of it will take.

    Raises:
        SpecError: a statistic fails or returns what it must not, a hookpoint is unknown, or two worlds are
            the same, which would count as two draws.
        StoreError: the folder cannot be written.
        NotEstimable: no site has scores.
    """
    spec, progress = spec or UseSpec(), progress or Progress()
    for made in (folder, None if folder is None else folder / "sites"):
        if made is not None:
            prepared(made)
    pieces = [
        WorkPiece(stage, f"{stage} {source.label}", _SECONDS[stage])
        for source in sources
        for stage in ("build", "score")
    ]
    sites: list[SiteScores] = []
    refused: dict[str, str] = {}
    labels: dict[str, str] = {}
    for source in sources:
        if not source.is_built:
            _check_new(source.worlds(progress), source.label, labels)
    with progress.whole(Outlook(pieces, rough=True, name="whole")):
        for source in sources:
            try:
                worlds = source.worlds(progress)
            except ModelError as problem:  # a model that did not learn its rule is no world
                refused[source.label] = str(problem)
                continue
            if source.is_built:
                _check_new(worlds, source.label, labels)
            places = [(w, h) for w in worlds for h in _sites_of(w, hookpoints)]
            with progress.track(f"score {source.label}", len(places), "sites") as advance:
                for world, hookpoint in places:
                    try:
                        found = _site(
                            world, hookpoint, statistics, source.seed, spec, units, folder
                        )
                        sites.append(found)
                    except NotEstimable as lack:
                        refused[f"{world.name}, {hookpoint}"] = str(lack)
                    advance(1)
    if not sites:
        why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise NotEstimable(f"no site has scores ({why})")
    scores = StatisticScores(sites, refused)
    if folder is not None:
        facts = {"use": spec.model_dump(mode="json"), "units": units, "refused": refused}
        write_results(folder, "scores", list(_score_rows(scores)), facts)
        write_results(folder, "units", list(_unit_rows(scores)), facts)
    return scores


def _check_new(worlds: Sequence[World], label: str, labels: dict[str, str]) -> None:
    """Refuse a world that is there already.

    Args:
        worlds: The worlds of one source.
        label: What that source is called.
        labels: By the fingerprint of each world before, what its source is called; these worlds are added.

    Raises:
        SpecError: one is there.
    """
    for world in worlds:
        mark = _fingerprint(world)
        if mark in labels:
            raise SpecError(
                f"world {world.name!r} of {label} is that of {labels[mark]} as well, and would count as "
                "two: leave one out"
            )
        labels[mark] = label


def _sites_of(world: World, hookpoints: Sequence[str]) -> Sequence[str]:
    for name in hookpoints:
        if name not in world.hookpoints:
            raise SpecError(unknown_name(f"hookpoint of {world.name!r}", name, world.hookpoints))
    return hookpoints or world.hookpoints


def _site(
    world: World,
    hookpoint: str,
    statistics: Sequence[UserStatistic],
    seed: int,
    spec: UseSpec,
    units: Literal["latents", "values"],
    folder: Path | None,
) -> SiteScores:
    """Return the numbers at one site; the user's come first, so that a mistake in them shows early."""
    site = judged_site(world, hookpoint, seed, spec, units)
    where = f"{hookpoint} of {world.name!r}"
    own = {one.name: [float(x) for x in one.at(site, where)] for one in statistics}
    path = None
    if folder is not None:
        settings = {"use": spec.model_dump(mode="json"), "units": units, "seed": seed}
        place = {"world": _fingerprint(world), "hookpoint": hookpoint, "format": _FORMAT}
        path = folder / "sites" / f"{digest({**settings, **place})[:20]}.json"
    record = _kept(path)
    if record is None:
        found = score_site(world, site, seed, spec)
        record = {
            "names": [str(name) for name in found.names],
            "kinds": [int(kind) for kind in found.kinds],
            "verdicts": [USES[int(verdict)] for verdict in found.verdict],
            "statistics": {name: _listed(found.statistics[name]) for name in STATISTICS},
            "reasons": dict(found.reasons),
        }
        _keep(path, record)
    together = {**own, **{name: record["statistics"][name] for name in STATISTICS}}
    return SiteScores(world.name, hookpoint, **{**record, "statistics": together})


def _listed(values: Any) -> list[float | None]:
    return [float(x) if np.isfinite(x) else None for x in values]


def _fingerprint(world: World) -> str:
    """Return a hash of all that a world's scores depend on: its tokens, variables and weights."""
    total = hashlib.sha256(world.name.encode())
    for rows in (world.rows, world.train_rows, *(v.values for v in world.variables)):
        total.update(np.ascontiguousarray(rows).tobytes())
    for name, tensor in sorted(world.model.state_dict().items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return total.hexdigest()


def _kept(path: Path | None) -> dict[str, Any] | None:
    """Return the record in a site's file; None where it is missing or not what was written."""
    if path is None:
        return None
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or "seal" not in record or seal_is_broken(record):
        return None
    return {name: value for name, value in record.items() if name != "seal"}


def _keep(path: Path | None, record: Mapping[str, Any]) -> None:
    if path is None:
        return
    try:
        write_json(path, sealed(record))
    except OSError as problem:
        reason = problem.strerror or problem
        raise StoreError(f"cannot write {str(path)!r} ({reason}): give another folder") from None


def _score_rows(scores: StatisticScores) -> Iterator[dict[str, Any]]:
    for site in scores.sites:
        for name in site.statistics:
            found = site.auroc(name)
            known = np.isfinite(found.value)
            yield {
                "world": site.world,
                "hookpoint": site.hookpoint,
                "statistic": name,
                "ours": name in STATISTICS,
                "auroc": found.value if known else None,
                "low": found.low if known else None,
                "high": found.high if known else None,
                "n": found.n,
                "reason": found.reason,
            }


def _unit_rows(scores: StatisticScores) -> Iterator[dict[str, Any]]:
    for site in scores.sites:
        for i, (name, kind, verdict) in enumerate(
            zip(site.names, site.kinds, site.verdicts, strict=True)
        ):
            yield {
                "world": site.world,
                "hookpoint": site.hookpoint,
                "unit": name,
                "truth": _KINDS.get(kind, "neither"),
                "verdict": verdict,
                **{statistic: values[i] for statistic, values in site.statistics.items()},
            }

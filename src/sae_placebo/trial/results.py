"""The result of a trial: one folder of tables and a report, `<store>/trials/<trial name>/`."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sae_placebo.baselines.marginal_table import marginal_table
from sae_placebo.controls.dictionary import Retrained
from sae_placebo.core import precision
from sae_placebo.core.errors import StoreError
from sae_placebo.core.file_names import name_fault, shown_name
from sae_placebo.core.lazy import pandas, torch
from sae_placebo.core.store import Store, read_json
from sae_placebo.core.tables import SCHEMAS
from sae_placebo.core.trial_files import (
    RECORD,
    check_table,
    load_table,
    read_result,
    require_parts,
)
from sae_placebo.data.token_files import read_rows
from sae_placebo.latents.ladder.table import ladder_table
from sae_placebo.latents.measurement import held_out
from sae_placebo.latents.metrics.sparsity import l0_matches
from sae_placebo.models.activation_files import outliers, read_calibrations
from sae_placebo.report import build_report
from sae_placebo.stats.claims import claims
from sae_placebo.stats.designs import quads
from sae_placebo.stats.effects import effects
from sae_placebo.stats.failed_fits import failed_fits
from sae_placebo.stats.interactions import interactions
from sae_placebo.stats.replicates import ReplicateKey, ReplicateTable
from sae_placebo.trial.plan import Place, Plan
from sae_placebo.trial.publishing import publish
from sae_placebo.trial.recipes import read_missed
from sae_placebo.trial.record import CONFIDENCE, EVERY_METRIC, record
from sae_placebo.trial.result_folders import written_beside
from sae_placebo.trial.spec import TrialSpec
from sae_placebo.trial.table_files import read_replicates, read_table
from sae_placebo.trial.tables.audit import audit_tables
from sae_placebo.trial.tables.fit_curve import FitCurves
from sae_placebo.trial.tables.latents import decoys_of, mechanism_of, partners_of
from sae_placebo.trial.tables.ties import ties_table
from sae_placebo.trial.tables.use import joined as joined_table
from sae_placebo.trial.tables.use import keys_of, labelled, use_tables

if TYPE_CHECKING:
    from sae_placebo.causal.circuits.graph import GraphSpec
    from sae_placebo.core.progress import Progress
    from sae_placebo.trial.graph import PromptGraph

TABLES = tuple(SCHEMAS)
"""The name of every table of a trial's folder."""

OF_MEASURE = ("coverage",)
OF_PROFILE = ("latents", "passages", "sensitivity")
"""Tables that these stages write beside their measurements."""


def trial_folder(store: str | Path, name: str) -> Path:
    """Return where the results of the trial called `name` lie."""
    return Path(store) / "trials" / name


def report_page(folder: Path) -> Path:
    """Return where the page of the report lies, or would lie, in a trial's folder."""
    return folder / "report" / "index.html"


def is_result_of(folder: Path, spec: TrialSpec) -> bool:
    """Return whether the result in `folder` is of these settings and not of others under the same name."""
    if not os.path.lexists(folder / RECORD):
        return False
    record = read_result(folder)
    return record.get("spec") == spec.model_dump(mode="json")


def described(folder: Path, spec: TrialSpec) -> str:
    """Return in one sentence whether a trial's results are there, whole and of these settings."""
    try:
        if not is_result_of(folder, spec):
            other = "those of other settings" if os.path.lexists(folder / RECORD) else "none"
            return f"results: {other} in {str(folder)!r}."
        Trial(folder).check()
    except StoreError as error:
        return f"results: {error}."
    return f"results: in {str(folder)!r}."


def _table_of(name: str) -> property:
    """Return the property of `Trial` that reads a table; its docstring is what the schema says."""
    schema = SCHEMAS[name]
    only = f" Only {schema.only} have rows." if schema.only else ""
    told = f"Return a DataFrame with one row per {schema.row}.{only}"
    columns = "\n".join(f"    {column.name}: {column.meaning}" for column in schema.columns)

    def read(trial: Trial) -> Any:
        # not `record`, which may be older than the tables: another process may have run the trial again
        return load_table(trial.folder, name, read_result(trial.folder))

    return property(read, doc=f"{told}\n\nColumns:\n{columns}")


@dataclass(frozen=True)
class Trial:
    """A finished trial, read from its folder; a table is checked and loaded whenever it is asked for."""

    folder: Path

    def __init__(self, folder: str | Path) -> None:
        """Read the trial in `folder`, `<store>/trials/<name>`.

        Raises:
            StoreError: `folder` is no path, or a name that no file system takes.
        """
        if (fault := name_fault(folder)) is not None:
            raise StoreError(f"the trial's folder {shown_name(folder)} {fault}")
        object.__setattr__(self, "folder", Path(folder))

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """Return what was compared and how: protocol, arms, text, masks, versions, seconds."""
        record = read_result(self.folder)
        require_parts(self.folder, record)
        return record

    def check(self) -> None:
        """See to it that every table is as the trial wrote it.

        Raises:
            StoreError: one is not, or is missing; or the record is damaged.
        """
        record = read_result(self.folder)
        for name in TABLES:
            check_table(self.folder, name, record)

    effects = _table_of("effects")
    claims = _table_of("claims")
    interactions = _table_of("interactions")
    matching = _table_of("matching")
    coverage = _table_of("coverage")
    latents = _table_of("latents")
    partners = _table_of("partners")
    ladder = _table_of("ladder")
    fit_curve = _table_of("fit_curve")
    decoys = _table_of("decoys")
    sensitivity = _table_of("sensitivity")
    baselines = _table_of("baselines")
    marginal = _table_of("marginal")
    mechanism = _table_of("mechanism")
    measurements = _table_of("measurements")
    passages = _table_of("passages")
    use = _table_of("use")
    readers = _table_of("readers")
    writers = _table_of("writers")
    directions = _table_of("directions")
    patched = _table_of("patched")
    use_passages = _table_of("use_passages")
    ties = _table_of("ties")
    audits = _table_of("audits")
    audit_latents = _table_of("audit_latents")

    @property
    def report(self) -> Path:
        """Return the path of the report's page, which opens from disk.

        Raises:
            StoreError: there is no finished trial in the folder, or its page is missing.
        """
        _ = read_result(self.folder)
        page = report_page(self.folder)
        if not page.is_file():
            raise StoreError(
                f"the report {str(page)!r} is missing; `sae-placebo report` or `sae_placebo.build_report` "
                "writes it again from the trial's tables"
            )
        return page

    def graph(
        self,
        prompt: str,
        arm: str | None = None,
        sae: str | None = None,
        hookpoints: Sequence[str] | None = None,
        sae_seed: int | None = None,
        model_seed: int | None = None,
        settings: GraphSpec | None = None,
        progress: Progress | None = None,
    ) -> PromptGraph:
        """Return the attribution graph of a prompt: which tokens and latents lead to its next token.

        The arm's model is built again and the SAEs are read from the store, in which nothing is written.

        Args:
            prompt: The text, no longer than a row of the trial.
            arm: One of the trial's; the trained one unless given.
            sae: The label of the SAEs; the first one unless given.
            hookpoints: Some of the trial's on the residual stream; all of these unless given.
            sae_seed: The first one unless given.
            model_seed: The re-draw of an arm that is drawn; the first one unless given.
            settings: How much of the graph is computed and kept.
            progress: Where progress is shown; nowhere by default.

        Raises:
            SpecError: the prompt is empty, too long or unknown to the tokenizer; the trial has no such arm,
                SAE, hookpoint or seed; or a hookpoint is off the residual stream.
            NotEstimable: the prompt has one token.
            StoreError: artefacts are gone, or model or text have changed since the trial ran.
            ModelError: the model cannot be loaded, or not be built with the same weights.
        """
        from sae_placebo.trial.graph import graph_of_trial
        from sae_placebo.trial.graph_inputs import GraphChoice

        choice = GraphChoice(arm, sae, hookpoints, sae_seed, model_seed)
        return graph_of_trial(self, prompt, choice, settings, progress)

    def summary(self) -> str:
        """Return what failed and the headline effects, a line each, for a terminal."""
        failed = failed_fits(self.measurements)
        table = self.effects
        rows = [row._asdict() for row in table[table["metric"].isin(HEADLINE)].itertuples()]
        return "\n".join([*failed.sentences, *(_line(row, failed.unread(row)) for row in rows)])


def _line(row: Mapping[str, Any], unread: str | None) -> str:
    """Return one effect with its interval, its unit, and what re-draws of one control differ by (A/A)."""
    name = f"{row['metric']} at {row['hookpoint']}, {row['arm']} - {row['control']}"
    effect, low, high, unit = (row[key] for key in ("effect", "low", "high", "unit"))
    if unread:
        return f"{name}: not read: {unread}"
    if pandas.isna(effect):
        return f"{name}: not estimable: {row['reason']}"
    if pandas.isna(low):
        return f"{name}: {effect:+.3f} {unit} (no interval: {row['reason']})"
    found = f"{name}: {effect:+.3f} {unit} [{low:+.3f}, {high:+.3f}]"
    if low <= row["null"] <= high:
        found += ", no finding"
    if not pandas.isna(row["aa_low"]):
        return f"{found}; A/A {row['aa_effect']:+.3f} [{row['aa_low']:+.3f}, {row['aa_high']:+.3f}]"
    aa = row["aa_effect"]
    return found if pandas.isna(aa) else f"{found}; A/A {aa:+.3f}, no interval"


HEADLINE = ("mean_token_entropy_bits", "share_single_token", "explained_variance_above_gaussian")


def write_results(plan: Plan, store: Store) -> Trial:
    """Join the tables of all SAEs, compare the arms, and write the trial's folder and report."""
    final = trial_folder(store.root, plan.spec.name)
    with written_beside(final, plan.spec, store.warn) as folder:
        _write_results(plan, store, folder)
    return Trial(final)


def _write_results(plan: Plan, store: Store, folder: Path) -> None:
    measured = _measured(plan, store)
    joined = _join(plan, store, measured)
    joined["measurements"].insert(
        6, "latent", pandas.array([None] * len(joined["measurements"]), "Int64")
    )
    joined["matching"] = l0_matches(
        joined["measurements"],
        {label: sae.l0_target() for label, sae in plan.spec.saes.items()},
        plan.spec.trained_arm,
        plan.spec.measurement.l0_tolerance,
    )
    replicates = _gathered(plan, store, measured)
    four = quads(plan.spec.parts)
    curves = FitCurves.read(plan, store, replicates)
    curves.withhold(replicates, plan.spec.compared, four.values())
    joined["fit_curve"] = curves.rows(CONFIDENCE)
    joined["effects"] = effects(replicates, plan.spec.compared, EVERY_METRIC, CONFIDENCE)
    fair = [arm for arm, one in plan.spec.arms.items() if one.is_fair]
    joined["claims"] = claims(joined["effects"], claimed_of(plan.spec), fair)
    joined["interactions"] = interactions(replicates, four, EVERY_METRIC, CONFIDENCE)
    least = plan.spec.measurement.thresholds.min_firings
    calibrations = read_calibrations(store.path(plan.harvests[0]))
    widths = {name: len(one.mean) for name, one in calibrations.items()}
    joined["ladder"] = ladder_table(replicates, joined["latents"], widths, least, CONFIDENCE)
    joined["marginal"] = _marginal(plan, store, replicates)
    joined["decoys"] = decoys_of(plan.spec, joined["latents"], replicates)
    joined["partners"] = partners_of(plan.spec, joined["latents"])
    joined["mechanism"] = mechanism_of(
        plan.spec, joined["latents"], _cards(plan, store), plan.spec.measurement.thresholds
    )
    joined |= use_tables(plan, store) | audit_tables(plan, store)
    joined["ties"] = ties_table(plan, store)
    publish(store, folder, joined, record(plan, store))
    build_report(folder)


class _Measured(NamedTuple):
    """What one stage measured about one SAE: a row per metric, and values under document weights."""

    place: Place
    table: Any
    values: Mapping[str, np.ndarray]


def _measured(plan: Plan, store: Store) -> list[_Measured]:
    """Return what every stage measured about every SAE; each file is read once."""
    found = []
    reasons = {one: read_missed(store.path(step)) for one, step in plan.build.items()}

    def add(place: Place, table: Any, values: Mapping[str, np.ndarray]) -> None:
        why = reasons[place[0]].get(place[1])
        if why is not None:  # the arm's model is not what its control seeks there
            table, values = table.assign(value=np.nan, reason=why), {}
        found.append(_Measured(place, table, values))

    for place, step in (*plan.measure.items(), *plan.profile.items()):
        folder = store.path(step)
        add(place, read_table(folder / "measurements.parquet"), read_replicates(folder))
    for (one, hookpoint), step in plan.baselines.items():
        folder = store.path(step)
        table, values = read_table(folder / "measurements.parquet"), read_replicates(folder)
        for (sae, sae_seed), part in table.groupby(["sae", "sae_seed"], sort=False):
            own = part.drop(columns=["sae", "sae_seed"]).reset_index(drop=True)
            before = f"{sae}/{sae_seed}/"
            drawn = {n.removeprefix(before): v for n, v in values.items() if n.startswith(before)}
            add((one, hookpoint, sae, int(sae_seed)), own, drawn)
    return found


def _join(plan: Plan, store: Store, measured: Sequence[_Measured]) -> dict[str, Any]:
    """Return the tables of all SAEs and arms, each in one."""
    tables = {"measurements": [labelled(one.table, keys_of(plan, *one.place)) for one in measured]}
    for stage, names in ((plan.measure, OF_MEASURE), (plan.profile, OF_PROFILE)):
        for place, step in stage.items():
            for name in names:
                table = read_table(store.path(step) / f"{name}.parquet")
                tables.setdefault(name, []).append(labelled(table, keys_of(plan, *place)))
    for at, step in plan.baselines.items():
        table = read_table(store.path(step) / "baselines.parquet")
        tables.setdefault("baselines", []).append(labelled(table, keys_of(plan, *at)))
    return {name: joined_table(name, parts) for name, parts in tables.items()}


def claimed_of(spec: TrialSpec) -> list[str]:
    """Return the arms of which something may be claimed: the trained one, and what is retrained beside it."""
    retrained = [arm for arm, one in spec.arms.items() if isinstance(one.dictionary, Retrained)]
    return [spec.trained_arm, *(retrained if spec.given else ())]


def gather(plan: Plan, store: Store) -> ReplicateTable:
    """Return every metric of every SAE under all document weights, read from the artefacts."""
    return _gathered(plan, store, _measured(plan, store))


def _gathered(plan: Plan, store: Store, measured: Sequence[_Measured]) -> ReplicateTable:
    """Return every metric of every SAE under all document weights."""
    drawn = frozenset(arm for arm, one in plan.spec.arms.items() if one.draws)
    documents, tokens = {}, {}
    rows = read_rows(store.path(plan.tokenize))["heldout"]
    for hookpoint in plan.spec.hookpoints:
        folders = [store.path(step) for step in plan.harvests]
        kept = held_out(rows, [outliers(f, hookpoint) for f in folders], ())
        documents[hookpoint] = len(np.unique(kept.documents))
        tokens[hookpoint] = len(kept.places)
    families = {arm: one.family for arm, one in plan.spec.arms.items()}
    given = frozenset((arm, label) for label, by_arm in plan.spec.given.items() for arm in by_arm)
    shares = frozenset(name for name, metric in EVERY_METRIC.items() if metric.share_of)
    table = ReplicateTable(
        documents, tokens, drawn, families, plan.same_as(), given=given, shares=shares
    )
    for place, rows_of_metrics, values in measured:
        for row in rows_of_metrics.itertuples():
            _add(table, plan, place, row, values.get(row.metric))
    return table


def _marginal(plan: Plan, store: Store, of_metrics: ReplicateTable) -> Any:
    """Return what the latents of every arm save beyond every existing method."""
    table = ReplicateTable(
        of_metrics.n_documents, of_metrics.n_tokens, of_metrics.drawn, given=of_metrics.given
    )
    parts = []
    for (one, hookpoint), step in plan.baselines.items():
        folder = store.path(step)
        rows, values = read_table(folder / "marginal.parquet"), read_replicates(folder)
        parts.append(rows.assign(arm=one.arm, hookpoint=hookpoint))
        for row in rows.itertuples():
            for kind in ("bits", "share", "gaussian"):
                key = ReplicateKey(one.arm, hookpoint, row.sae, f"{row.baseline}/{kind}")
                drawn = values.get(f"{row.sae}/{row.sae_seed}/{row.baseline}/{kind}")
                why = None if pandas.isna(row.reason) else str(row.reason)
                table.add(key, one.model_seed or 0, int(row.sae_seed), drawn, None, why)
    return marginal_table(pandas.concat(parts, ignore_index=True), table, CONFIDENCE)


def _add(table: ReplicateTable, plan: Plan, place: Place, row: Any, values: Any | None) -> None:
    """Add one row of a table of measurements."""
    one, hookpoint, sae, sae_seed = place
    table.add(
        ReplicateKey(one.arm, hookpoint, sae, row.metric),
        one.model_seed or 0,
        sae_seed,
        values,
        None if pandas.isna(row.null_value) else float(row.null_value),
        None if pandas.isna(row.reason) else str(row.reason),
        plan.spec.saes[sae].d_sae if EVERY_METRIC[row.metric].counts_latents else 0,
    )


def _cards(plan: Plan, store: Store) -> dict[str, Any]:
    """Return by arm the diagnostics of its first model."""
    cards: dict[str, Any] = {}
    for one, step in plan.build.items():
        cards.setdefault(one.arm, read_json(store.path(step) / "card.json"))
    return cards


def environment() -> dict[str, Any]:
    """Return what a result's last bits may depend on: versions, machine, threads, precision."""
    names = ("sae-placebo", "torch", "transformers", "numpy", "scipy", "tokenizers", "safetensors")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: importlib.metadata.version(name) for name in names},
        "threads": torch.get_num_threads(),
        "fast_products": precision.measure().fast,
    }

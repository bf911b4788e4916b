"""The variances of an effect in a finished trial, by source, and the size of the trial that showed them.

`power` computes from both what another trial would detect.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import Field

from sae_placebo.core.errors import NotEstimable, SpecError, unknown_name
from sae_placebo.core.spec import Spec
from sae_placebo.stats.components import MODEL_SEEDS, SAE_SEEDS
from sae_placebo.stats.moderation import variance_prior
from sae_placebo.stats.scales import CountScale
from sae_placebo.stats.spreads import MeanSquare, mean_squares
from sae_placebo.trial.results import Trial

_COUNTED = "share_"
"""Metrics whose names begin so are shares of latents."""


class Variances(Spec):
    """The variance that one unit of each source brings, in squared units of the metric.

    Attributes:
        documents: Variance of the effect over documents, times the number of documents.
        redraws: Variance between re-draws of the control.
        saes: Variance between SAE seeds that more latents do not lower.
        latents: Variance between SAE seeds from counting latents, times d_sae; 0 for other metrics.
        seeds_df: Degrees of freedom that the other numbers of the trial add to a variance between SAE seeds.
        redraws_df: The same for re-draws.
        said: Words that say where the numbers come from.
    """

    documents: float = Field(ge=0)
    redraws: float = Field(ge=0)
    saes: float = Field(ge=0)
    latents: float = Field(ge=0)
    seeds_df: float = Field(0.0, ge=0)
    redraws_df: float = Field(0.0, ge=0)
    said: str


DEFAULTS = Variances(
    documents=1.3e-3,
    redraws=1.2e-7,
    saes=7.1e-6,
    latents=1.2e-2,
    said="no trial given: the largest variances of any class share in the demo, d_sae 1,024",
)


class TrialSize(Spec):
    """The size of a trial: its documents, tokens, latents, seeds and document replicates."""

    n_documents: int = Field(55, ge=2)
    heldout_tokens: int = Field(50_000, ge=1)
    d_sae: int = Field(1_024, ge=1)
    sae_seeds: int = Field(2, ge=2)
    model_seeds: int = Field(2, ge=2)
    replicates: int = Field(200, ge=2)
    counts_latents: bool = True

    def with_tokens(self, tokens: int) -> TrialSize:
        """Return the design with more or fewer documents of the same length.

        Documents are whole, so their length is kept only from the design that was measured: other
        numbers of tokens are derived from that one, never one from another.

        Raises:
            SpecError: two documents hold more tokens.
        """
        least = math.ceil(2 * self.heldout_tokens / self.n_documents)
        if tokens < least:
            raise SpecError(
                f"heldout_tokens is {tokens:,}, and two documents hold {least:,}; an interval needs two "
                "documents: hold out at least that many tokens"
            )
        documents = max(2, round(self.n_documents * tokens / self.heldout_tokens))
        return self.model_copy(update={"heldout_tokens": tokens, "n_documents": documents})

    def of(self, **changes: int) -> TrialSize:
        """Return the design with other numbers of seeds or latents."""
        return self.model_copy(update=changes)


def measured(
    trial: Trial, metric: str, control: str | None = None, place: tuple[str, str] | None = None
) -> tuple[Variances, TrialSize]:
    """Return the variances of a metric in a finished trial, and the trial's design.

    The variance between SAE seeds is pooled over the models of the arms compared, that between
    re-draws over the controls, less what SAE seeds add to a re-draw's mean, and never below 0.
    That over documents is what is left of an effect's squared standard error when the seeds' parts are
    taken off, averaged over contrasts. A share never varies less than its count does, that of one latent
    where there is none. What a variance gains from the others (`stats.moderation`) is taken over the same
    metrics as in the trial: all shares of latents, or this metric at all hookpoints and of all SAEs and arms.

    Args:
        trial: A finished trial.
        metric: A metric that the trial measured.
        control: The drawn control that the trained arm is compared with; all of them, pooled, unless given.
        place: The hookpoint and the SAE's label; the first of each unless given.

    Raises:
        SpecError: the trial has no such metric, control or place.
        NotEstimable: the trial has one seed, or no contrast of the trained arm with a drawn control.
    """
    spec = trial.record["spec"]
    hookpoint, sae = place or (spec["hookpoints"][0], next(iter(spec["saes"])))
    table, drawn = _at(trial, metric, hookpoint, sae)
    if control is not None:
        _known("drawn control", control, set(drawn["control"]))
        drawn = drawn[drawn["control"] == control]
    d_sae, counts = int(spec["saes"][sae]["d_sae"]), metric.startswith(_COUNTED)
    values = {arm: _values(table, arm) for arm in {*drawn["arm"], *drawn["control"]}}
    share = float(np.mean([v.mean() for v in values.values()]))
    found = _decomposed(drawn, values)
    if counts:
        found["saes"] = max(found["saes"], 1 / d_sae**2)
    # a share of 0 is one of fewer than one latent
    latents = min(found["saes"] * d_sae, max(share * (1 - share), 1 / d_sae)) if counts else 0.0
    row, against = drawn.iloc[0], " or ".join(drawn["control"])
    variances = Variances(
        documents=found["documents"] * int(row["n_documents"]),
        redraws=found["redraws"],
        saes=max(found["saes"] - latents / d_sae, 0.0),
        latents=latents,
        **_prior_df(trial, metric),
        said=f"{metric}, {row['arm']} minus {against}, measured in trial {trial.record['name']!r} at "
        f"{hookpoint}, {sae}",
    )
    measurement = spec.get("measurement", {})
    design = TrialSize(
        n_documents=int(row["n_documents"]),
        heldout_tokens=int(row["n_tokens"]),
        d_sae=d_sae,
        sae_seeds=int(row["n_sae_seeds"]),
        model_seeds=int(row["n_control_models"]),
        counts_latents=counts,
        **{name: measurement[name] for name in ("replicates",) if name in measurement},
    )
    return variances, design


def _at(trial: Trial, metric: str, hookpoint: str, sae: str) -> tuple[Any, Any]:
    """Return the values of a metric by SAE, and its effects against drawn controls."""
    tables = []
    for table in (trial.measurements, trial.effects):
        for column, name in (("metric", metric), ("hookpoint", hookpoint), ("sae", sae)):
            _known(column, name, set(table[column]))
            table = table[table[column] == name]
        tables.append(table)
    values, effects = tables
    drawn = effects[
        effects["se"].notna() & (effects["n_arm_models"] == 1) & (effects["n_control_models"] > 1)
    ]
    if not len(drawn):
        raise NotEstimable(
            f"no interval of {metric} against a control with two re-draws or more; give at least two "
            "model_seeds and two sae_seeds"
        )
    return values[values["value"].notna()], drawn


def _known(kind: str, name: str, names: set[Any]) -> None:
    if name not in names:
        raise SpecError(unknown_name(kind, name, map(str, names)))


def _values(table: Any, arm: str) -> Float[np.ndarray, "model sae_seed"]:
    of_arm = table[table["arm"] == arm]
    wide = of_arm.assign(model_seed=of_arm["model_seed"].fillna(-1)).pivot(
        index="model_seed", columns="sae_seed", values="value"
    )
    found: Float[np.ndarray, "model sae_seed"] = wide.to_numpy(np.float64)
    return found


def _decomposed(
    drawn: Any, values: dict[str, Float[np.ndarray, "model sae_seed"]]
) -> dict[str, float]:
    """Return the variance of an effect over documents, between re-draws and between SAE seeds."""
    saes = float(np.concatenate([v.var(axis=1, ddof=1) for v in values.values()]).mean())
    of_controls = [
        control.mean(1).var(ddof=1) - saes / control.shape[1]
        for control in (values[name] for name in drawn["control"])
    ]
    redraws = max(float(np.mean(of_controls)), 0.0)
    documents = []
    for row in drawn.to_dict("records"):
        models, seeds = values[row["control"]].shape
        documents.append(
            row["se"] ** 2 - redraws / models - saes * (1 / seeds + 1 / models / seeds)
        )
    return {"documents": max(float(np.mean(documents)), 0.0), "redraws": redraws, "saes": saes}


def _prior_df(trial: Trial, metric: str) -> dict[str, float]:
    """Return what the trial's other numbers add to the degrees of freedom of a variance, by source."""
    table = trial.measurements
    of_kind = table["metric"] == metric
    if metric.startswith(_COUNTED):
        of_kind = table["metric"].str.startswith(_COUNTED)
    table = table[of_kind & table["value"].notna()]
    widths = {name: sae["d_sae"] for name, sae in trial.record["spec"]["saes"].items()}
    squares: dict[str, list[MeanSquare]] = {SAE_SEEDS: [], MODEL_SEEDS: []}
    for (name, _, sae, arm), part in table.groupby(["metric", "hookpoint", "sae", "arm"]):
        values = _values(part, arm)
        if name.startswith(_COUNTED):
            if not 1 <= values.mean() * widths[sae] <= widths[sae] - 1:
                continue
            values = CountScale(widths[sae]).forward(values)
        drawn = len(values) > 1
        for source, square in mean_squares(values, drawn).items():
            if source in squares:
                squares[source].append(square)
    found = {}
    for source, name in ((SAE_SEEDS, "seeds_df"), (MODEL_SEEDS, "redraws_df")):
        values, df = (
            np.array([getattr(s, field) for s in squares[source]], dtype=np.float64)
            for field in ("value", "df")
        )
        found[name] = min(variance_prior(values, df).df, 1e6)
    if not metric.startswith(_COUNTED):
        # as in `stats.spreads`: re-draws on a metric's own scale count for no more than the other arms' there
        df = np.array([square.df for square in squares[MODEL_SEEDS]], dtype=np.float64)
        places = table.drop_duplicates(["hookpoint", "sae"])
        others = float(df.sum() / len(places) - df.mean()) if len(df) else 0.0
        parts = (found["redraws_df"], others)
        found["redraws_df"] = 1 / sum(1 / part for part in parts) if min(parts) > 0 else 0.0
    return found

"""The table of an examination: which latents of a given SAE are no better than a placebo's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sae_placebo.core.lazy import pandas
from sae_placebo.report.wording import counted
from sae_placebo.trial.examine_file import CALIBRATED, GIVEN, RETRAINED

if TYPE_CHECKING:
    from sae_placebo.trial.results import Trial

NO_BETTER, BETTER, CANNOT_TELL = "no better", "better", "cannot tell"
"""What is said of a latent beside a placebo's."""
_KEYS = ["arm", "model_seed", "sae_seed", "latent"]
_OF_LATENT = (
    *("class", "rule", "rule_precision", "rule_recall", "rule_reason", "origin", "evidence"),
    *("has_placebo_partner", "placebo_partner", "placebo_r", "has_seed_partner", "seed_r"),
    *("density", "n_active", "top_token", "top_token_mass", "r2_token", "r2_pair"),
)
_OF_USE = ("use", "use_reason", "effect", "null_ratio", "use_p", "tied", "written_p", "read_p")
_RARE, _ANTIPODAL, _AXIS, _SHRUNK, _DENSE = 30, 0.9, 0.9, 0.1, 0.1


def latents_of(trial: Trial) -> Any:
    """Return one row per latent of the given and of the retrained SAE.

    `placebo` is what is said of it beside a placebo's latents, and `why` the reason. A latent is *no better*
    where it is dead, has a partner in the calibrated placebo's SAE, or is explained by what the ladder knows
    (tokens, positions, embeddings, the placebo model), unless the model is seen to use it. It is *better*
    where the model uses it, where circuitry is tied to it beyond null directions, or where nothing on the
    ladder explains it and another seed has it too. Else it *cannot* be told. `flags` name what else a reader
    should know. Use and circuitry are `null` where a latent was not asked, and `use_reason` says so.
    """
    return rows_of(trial, (GIVEN, RETRAINED)).drop(columns="model_seed")


def rows_of(trial: Trial, arms: tuple[str, ...]) -> Any:
    """Return the table of some arms, with the seed of the model; see `latents_of`."""
    latents = trial.latents
    latents = latents[latents["arm"].isin(arms)]
    made = latents[[*_KEYS, *(name for name in _OF_LATENT if name in latents)]].copy()
    use = trial.use[[*_KEYS, *(name for name in _OF_USE if name in trial.use)]]
    found = (
        made.merge(use, on=_KEYS, how="left") if len(use) else made.assign(use=None, tied=math.nan)
    )
    not_asked = "not among the latents that were asked"
    reasons = found["use_reason"] if "use_reason" in found else pandas.Series(index=found.index)
    used = found["use"] == "used"
    found["use_reason"] = reasons.where(found["use"].notna(), not_asked).mask(used, None)
    said = [_said(row) for row in found.to_dict("records")]
    found.insert(len(_KEYS), "placebo", [one for one, _ in said])
    found.insert(len(_KEYS) + 1, "why", [why for _, why in said])
    flagged = latents.merge(_audited(trial, arms), on=_KEYS, how="left")
    found["flags"] = [_flags(row) for row in flagged.to_dict("records")]
    return found.reset_index(drop=True)


def _audited(trial: Trial, arms: tuple[str, ...]) -> Any:
    names = ["shrinkage_scale", "shrinkage_scale_half_width"]
    table = trial.audit_latents
    if not set(names) <= set(table):
        return pandas.DataFrame(columns=[*_KEYS, *names])
    return table[table["arm"].isin(arms)][[*_KEYS, *names]]


def _said(row: dict[str, Any]) -> tuple[str, str]:
    """Return what is said of a latent beside a placebo's, and why."""
    if row["class"] == "dead":
        return NO_BETTER, "it never fires"
    if row["use"] == "used":
        return BETTER, "the model uses it"
    if row["tied"] == 1:
        return BETTER, "it is tied to circuitry beyond null directions"
    if row["origin"] == "not_explained":
        return BETTER, "nothing on the ladder explains it, and another seed has it too"
    if row["has_placebo_partner"] == 1:
        return NO_BETTER, "the calibrated placebo's SAE has a partner of it"
    if row["origin"] == "explained":
        return NO_BETTER, str(row["evidence"])
    return CANNOT_TELL, f"{row['evidence']}; use: {row['use_reason']}"


def _flags(row: dict[str, Any]) -> str:
    """Return what else a reader should know of a latent, in a few words each; empty for nothing."""
    known = {key: value for key, value in row.items() if not pandas.isna(value)}
    found = []
    if 0 < known.get("n_active", _RARE) < _RARE:
        found.append(f"fires on {int(known['n_active'])} tokens only")
    if known.get("density", 0) > _DENSE:
        found.append("dense")
    if known.get("antipodality", 0) > _ANTIPODAL:
        found.append("has an antipode")
    if abs(known.get("pc_cosine", 0)) > _AXIS:
        found.append("a principal component")
    off = abs(known.get("shrinkage_scale", 1) - 1)
    if off - known.get("shrinkage_scale_half_width", math.inf) > _SHRUNK:
        found.append(f"codes {known['shrinkage_scale']:.2f} times as large would fit better")
    return "; ".join(found)


def asked_of(rows: Any) -> Any:
    """Return the latents of the SAEs of which use and circuitry were asked; all where none was."""
    known = (rows["use"].notna() | rows["tied"].notna()).rename("known")
    asked = known.groupby([rows[name] for name in _KEYS[:-1]], dropna=False).transform("any")
    return rows[asked] if asked.any() else rows


def summary_of(trial: Trial) -> str:
    """Return, of each SAE, how many latents are no better than a placebo's, for a terminal.

    The calibrated placebo's rows are what the same rule makes of a placebo's own latents: its false alarms.
    """
    lines = []
    table = asked_of(rows_of(trial, (GIVEN, RETRAINED, CALIBRATED)))
    for arm, part in table.groupby("arm", sort=False):
        n = len(part[["model_seed", "sae_seed"]].drop_duplicates())
        lines.append(f"{arm}: {len(part):,} latents of {counted(n, 'SAE')}")
        for verdict in (NO_BETTER, BETTER, CANNOT_TELL):
            own = part[part["placebo"] == verdict]
            share = len(own) / len(part)
            most = own["why"].str.split("; use: ").str[0].value_counts().head(3)
            why = "; ".join(f"{n:,}: {reason}" for reason, n in most.items())
            lines.append(
                f"  {verdict}: {len(own):,} ({share:.1%})"
                + (f", most of them: {why}" if why else "")
            )
    lines.append(
        f"The rows of {CALIBRATED} are what the same rule says of a placebo's own latents."
    )
    return "\n".join(lines)

"""Tables on use and circuits of a trial that never ran, with the schema of a real one.

Nothing here is a measurement; the same arguments give the same bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sae_placebo.stats.clustered_shares import Counted
from sae_placebo.trial.tables.ties import Counts, dispersions_of, rows_of

KEYS = ("arm", "control_kind", "model_seed", "sae_seed", "hookpoint", "sae")
ORIGINS = ("explained", "not_explained", "undetermined")
USES = ("used", "not_used", "undetermined")
REASONS = (
    "not shown to cost more than null directions",
    "its effect may be larger than what is negligible",
    "too few firings to claim that it is not used",
)
READERS = (
    ("unembedding", "unembedding"),
    ("mlp.4", "mlp"),
    ("mlp.5", "mlp"),
    ("q.4.0", "qk"),
    ("k.4.0", "qk"),
    ("v.4.0", "ov"),
)
WRITERS = (("embedding", "embedding"), ("head.2.1", "head"), ("mlp.3", "mlp"), ("mlp.1", "mlp"))
LIMITS = tuple(float(x) for x in np.geomspace(1e-4, 1e-1, 7))


def use_tables(
    latents: pd.DataFrame, passages: pd.DataFrame, arms: tuple[str, ...], refused: str | None = None
) -> tuple[dict[str, pd.DataFrame], list[dict[str, Any]]]:
    """Return the tables by name, and what `trial.json` holds under `use`.

    Args:
        latents: Of the trial.
        passages: Of the trial: the latents that have some are given a card.
        arms: That are asked, in their first re-draw and SAE seed.
        refused: An arm that could not be asked.
    """
    tables: dict[str, list[pd.DataFrame]] = {}
    told: list[dict[str, Any]] = []
    for arm in arms:
        of_arm = latents[latents["arm"] == arm]
        for place in dict.fromkeys(of_arm["hookpoint"]):
            own = of_arm[of_arm["hookpoint"] == place]
            first = own[["model_seed", "sae_seed"]].iloc[0]
            for name, seed in first.items():
                own = own[own[name].isna() if pd.isna(seed) else own[name] == seed]
            keys = {k: own[k].iloc[0] for k in KEYS if k in own} | {"control_kind": "redraw"}
            plain = {k: None if pd.isna(v) else v for k, v in keys.items() if k != "control_kind"}
            plain = {
                k: int(v) if k.endswith("seed") and v is not None else v for k, v in plain.items()
            }
            if arm == refused:
                told.append(plain | {"refused": "no latent fires on enough held-out tokens"})
                continue
            made = _one(own.reset_index(drop=True), seed=arms.index(arm))
            shown = made["use"].loc[made["use"]["use"].notna(), "latent"].iloc[::3]
            made["use_passages"] = _passages(passages, shown)
            kept = set(made["use_passages"]["latent"])
            made["patched"] = made["patched"][made["patched"]["latent"].isin(kept)]
            for name, table in made.items():
                table = table.reset_index(drop=True)
                for k, value in keys.items():
                    seed = k.endswith("seed")
                    column = [None if seed and pd.isna(value) else value] * len(table)
                    table[k] = pd.array(column, "Int64") if seed else column
                tables.setdefault(name, []).append(table)
            told.append(plain | _record(made["use"]))
    if tables and len(arms) > 1:
        places = latents[["hookpoint", "sae"]].drop_duplicates().to_dict("records")
        tables["ties"] = [ties_table(arms).assign(**place) for place in places]
    return {name: pd.concat(found, ignore_index=True) for name, found in tables.items()}, told


def ties_table(arms: tuple[str, ...]) -> pd.DataFrame:
    """Return a table of ties: the first arm has many more than the others; no arm keeps the embeddings."""
    counted = {
        (arm, measure, kind): Counted((hits, hits + 3), (n, n))
        for i, arm in enumerate(arms)
        for measure, kind, n, of_all in (
            ("tied", "all", 200, 60), ("written", "all", 200, 80), ("read", "all", 200, 90),
            ("tied", "unexplained", 150, 40), ("tied", "n_gram", 9, 3),
        )
        for hits in [of_all // (1 + 20 * i)]
    }  # fmt: skip
    counts = Counts(counted, arms[0], arms[1:], dispersions_of([counted]))
    found = list(rows_of(counts, ["no arm keeps the embeddings"]))
    return pd.DataFrame(found)


def _one(own: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
    n, random = len(own), np.random.default_rng(seed)
    asked = np.arange(n) % 3 > 0
    which = np.arange(n)
    use = np.array(USES, dtype=object)[(which + which // 3 + seed) % 3]
    effect = np.where(use == "used", 0.02, np.where(use == "not_used", 1e-4, 8e-4))
    effect = effect * np.exp(0.4 * random.standard_normal(n))
    column = {
        "latent": own["latent"].astype(int),
        "use": [u if a else None for u, a in zip(use, asked, strict=True)],
    }
    reason = np.array(REASONS, dtype=object)[which % 3]
    column |= {
        "use_reason": [r if u == "undetermined" else "" for r, u in zip(reason, use, strict=True)],
        "use_weight": np.where(asked, 1.5 + which % 2, np.nan),
    }
    for name, scale in (("effect", 1.0), ("beside", 1.3)):
        column[name] = scale * effect
        column[f"{name}_low"], column[f"{name}_high"] = 0.5 * scale * effect, 1.6 * scale * effect
    p = np.where(use == "used", 0.01, 0.43)
    column |= {
        "effect_resampled": 1.2 * effect, "effect_documents": np.full(n, 30.0),
        "null_effect": np.full(n, 6e-4), "null_firings": np.full(n, 16.0),
        "effect_at_nulls": 0.9 * effect, "use_p": p, "use_p_effect": p, "use_q": p,
        "null_ratio": effect / 6e-4, "null_ratio_low": effect / 8e-4, "null_ratio_high": effect / 4e-4,
        "uniform_firings": np.where(use == "not_used", 92.0, np.nan),
        "uniform_effect_high": np.where(use == "not_used", 2e-4, np.nan),
        "uniform_ratio_high": np.where(use == "not_used", 0.6, np.nan),
        "last_in_high": np.where(use == "not_used", 2e-4, np.nan),
        "unseen_share": np.where(use == "not_used", 0.0488, np.nan),
        "tokens_needed": np.full(n, np.nan),
        **{f"group{x}": np.full(n, np.nan)
           for x in ("", "_size", "_effect", "_effect_low", "_p", "_used")},
        "n_nulls": np.full(n, 24.0), "beats_nulls": (use == "used").astype(float),
        "survives_joint": (use == "not_used").astype(float), "screen": effect,
        "screen_ratio": effect / 6e-4, "screen_p": p,
        "path_unembedding": np.full(n, 0.4), "path_qk": np.full(n, 0.1),
        "path_ov": 0.2 + 0.1 * random.random(n), "path_mlp": np.full(n, 0.3),
        "tied": (which % 2).astype(float), "class": own["class"],
        "origin": np.array(ORIGINS, dtype=object)[which % 3 if seed else (which // 2) % 3],
        "evidence": "token explains it", "n_active": own["n_active"],
    }  # fmt: skip
    table = pd.DataFrame(column)
    numbers = table["latent"].to_numpy()
    readers = pd.DataFrame(
        [
            (
                i,
                rank,
                *READERS[(i + rank + seed) % 6],
                0.5 - 0.1 * rank,
                0.01,
                0.99 - 0.3 * rank,
                400,
            )
            for i in numbers.tolist()
            for rank in range(4)
        ],
        columns=["latent", "rank", "reader", "kind", "share", "signed", "percentile", "n"],
    )
    writers = pd.DataFrame(
        [
            (i, rank, *WRITERS[(i + rank) % 4], s, s - 0.05, s + 0.05, 0.2, 97.0, s > 0.2, 400)
            for i in numbers.tolist()
            for rank, s in enumerate((0.6, 0.3, 0.1))
        ],
        columns=["latent", "rank", "part", "kind", "share", "low", "high", "null95",
                 "pseudo_percentile", "above", "n"],
    )  # fmt: skip
    top = readers[readers["rank"] == 0]
    patched = top[["latent", "reader"]].assign(kl=3e-4, null=1e-4, p=0.02, n_nulls=49, n_firings=8)
    tables = {"use": table, "readers": readers, "writers": writers, "patched": patched}
    return tables | {"directions": _directions()}


def _directions() -> pd.DataFrame:
    rows = []
    for kind, n in (("error", 6), ("pseudo", 40), ("covariance", 40), ("untrained", 80)):
        for i in range(n):
            effect = 0.01 / (i + 1) if kind == "error" else 0.001
            p = 0.01 if kind == "error" and i < 3 else (i + 0.5) / n
            variance = 0.1 / (i + 1) if kind == "error" else None
            rows.append(
                (kind, i, variance, effect, 0.6 * effect, 1.5 * effect, 8e-4, 16, effect, p, 32)
            )
    names = ["kind", "index", "variance", "effect", "effect_low", "effect_high", "null_effect"]
    names += ["null_firings", "effect_at_nulls", "p", "documents"]
    return pd.DataFrame(rows, columns=names)


def _passages(passages: pd.DataFrame, shown: pd.Series) -> pd.DataFrame:
    """Return passages of the trial's, which stand for those of the latents shown."""
    columns = ["rank", "document", "tokens", "activations", "peak"]
    some = passages[columns].iloc[:2]
    parts = [some.assign(latent=latent) for latent in shown.tolist()]
    if not parts or not len(some):
        return pd.DataFrame(columns=["latent", *columns])
    return pd.concat(parts, ignore_index=True)


def _control(n: int, used: int, costlier: float) -> dict[str, Any]:
    share = used / n
    return {
        "n": n, "n_used": used, "costlier": {"share": costlier, "low": 0.0, "high": costlier + 0.2},
        "used": {"share": share, "low": max(share - 0.05, 0), "high": share + 0.05},
        "margin": {"share": 0.3 - share, "low": 0.2 - share, "high": 0.4 - share},
    }  # fmt: skip


def _record(table: pd.DataFrame) -> dict[str, Any]:
    asked = table[table["use"].notna()]
    used = [max(0.0, 0.6 - 0.09 * i) for i in range(len(LIMITS))]
    unused = [min(1.0, 0.05 + 0.08 * i) for i in range(len(LIMITS))]
    left = [1 - a - b for a, b in zip(used, unused, strict=True)]
    sizes = [0, 20, 80, 160, 320, 400]
    cost = [0.0, 1e-5, 1e-3, 8e-3, 0.2, 1.1]
    return {
        "n_latents": len(asked), "n_firings": 3000, "n_visited": 3000, "full_swap_nats": 2.3,
        "shares": {"used": {"share": 0.3, "low": 0.2, "high": 0.4}}, "reasons": {},
        "groups": {"n": 3, "used": 1},
        "costlier": {"share": 0.7, "low": 0.6, "high": 0.8},
        "sensitivity": {
            "limits": list(LIMITS), "used": used, "not_used": unused, "undetermined": left,
        },
        "joint": {
            "sizes": sizes, "cost": cost, "low": [0.8 * x for x in cost],
            "high": [1.3 * x for x in cost], "full_nats": 2.0, "limit_nats": 0.01,
            "survive": 160, "n_documents": 60, "n_tokens": 9000,
        },
        "worst": {
            "sizes": [160, 120], "shares": [0.02, 0.004], "holds": True, "survive": 120, "n_tokens": 4000,
        },
        "pseudo": {"below_5_percent": 0.05, "below_half_percent": 0.0, "ks_p": 0.62,
                   **_control(40, 0, 0.05)},
        "covariance": _control(40, 2, 0.5), "untrained": _control(80, 16, 0.6),
    }  # fmt: skip

"""Tables of audits: where an SAE misleads."""

from __future__ import annotations

from sae_placebo.core.tables.base import Column, Kind, Table, alike
from sae_placebo.core.tables.keys import KEYS, LATENT

_AUDITED = "SAEs that were audited"

AUDITS = Table(
    "audits",
    "number of each audit of each SAE that was audited",
    (
        *KEYS,
        Column("audit", "string", "which audit", nullable=False),
        Column(
            "name",
            "string",
            "which number; `quantity/label` where it is of one label; all are in "
            "[where an SAE misleads](../concepts/misleading.md)",
            nullable=False,
        ),
        *alike("value low high", "float", "the number and its 95% interval; null with a `reason`"),
        Column("n", "int", "how many of `of` it is taken over", nullable=False),
        *alike(
            "null null_low null_high",
            "float",
            "the number where there is nothing to find, and its range",
        ),
        Column("at", "float", "place on a curve; null where the number is no point of one"),
        Column("of", "string", "what `n` counts", nullable=False),
        Column(
            "reason", "string", "why there is no value; empty where there is one", nullable=False
        ),
    ),
    only=_AUDITED,
)


def _numbers(audit: str, **columns: str) -> tuple[Column, ...]:
    kind: Kind = "float"
    return tuple(
        Column(f"{audit}_{name}", kind, meaning, optional=True) for name, meaning in columns.items()
    )


AUDIT_LATENTS = Table(
    "audit_latents",
    "latent of each SAE that was audited",
    (
        *KEYS,
        LATENT,
        *_numbers(
            "shrinkage",
            scale="factor by which its code must be multiplied to fit the activations best",
            scale_half_width="half the 95% interval of that factor",
        ),
        *_numbers(
            "latent_geometry",
            rate="share of the tokens on which it is active",
            antipodality="largest product of encoder and decoder cosine with an opposite latent",
            pc_share="share of its decoder row along the leading principal components",
            position_share="share of the variance of its firing that its position explains, less chance",
            overlap="mean |cosine| of its decoder row to those of the other living latents",
            interference="its products with other latents, of codes and decoder rows, over its own energy",
        ),
        *_numbers(
            "hedging",
            hedging_excess="its change along new latents, less the mean along random subspaces",
        ),
        *_numbers("meta_sae", meta_explained="share of its decoder row that meta-latents explain"),
    ),
    only=_AUDITED,
    note="""A column is called `<audit>_<name>`, and is absent where the audit could not be made. An audit
that finds a number of each latent declares its column in `core/tables/audits.py`.""",
)

"""The schema of every table of a trial's folder, in the order in which they are documented."""

from __future__ import annotations

from sae_placebo.core.tables.audits import AUDIT_LATENTS, AUDITS
from sae_placebo.core.tables.base import Column, Table
from sae_placebo.core.tables.baselines import BASELINES, MARGINAL
from sae_placebo.core.tables.effects import CLAIMS, EFFECTS, INTERACTIONS, MATCHING, MEASUREMENTS
from sae_placebo.core.tables.keys import KEYS, MODEL_KEYS
from sae_placebo.core.tables.labels import COVERAGE
from sae_placebo.core.tables.latents import LATENTS, PASSAGES, SENSITIVITY, USE_PASSAGES
from sae_placebo.core.tables.structure import DECOYS, FIT_CURVE, LADDER, MECHANISM, PARTNERS
from sae_placebo.core.tables.use import DIRECTIONS, PATCHED, READERS, TIES, USE, WRITERS

__all__ = ["KEYS", "MODEL_KEYS", "SCHEMAS", "Column", "Table"]

_ALL = (
    *(
        EFFECTS,
        CLAIMS,
        INTERACTIONS,
        MATCHING,
        COVERAGE,
        LATENTS,
        PARTNERS,
        LADDER,
        FIT_CURVE,
        DECOYS,
    ),
    *(SENSITIVITY, BASELINES, MARGINAL, MECHANISM, MEASUREMENTS, PASSAGES),
    *(USE, READERS, WRITERS, DIRECTIONS, PATCHED, USE_PASSAGES, TIES),
    *(AUDITS, AUDIT_LATENTS),
)
SCHEMAS: dict[str, Table] = {table.name: table for table in _ALL}
"""Every table by its name."""

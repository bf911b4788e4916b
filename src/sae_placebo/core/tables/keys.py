"""The columns that say what a row is about; most tables begin with them."""

from __future__ import annotations

from sae_placebo.core.tables.base import Column

ARM = Column("arm", "string", "name of the arm", nullable=False)
CONTROL_KIND = Column(
    "control_kind", "string", "kinds of the arm's controls, joined by +", nullable=False
)
MODEL_SEED = Column(
    "model_seed", "int", "re-draw of the arm's model; null where its control draws nothing"
)
SAE_SEED = Column("sae_seed", "int", "seed of the SAE's initialization", nullable=False)
HOOKPOINT = Column(
    "hookpoint", "string", "where in the model the activations are read", nullable=False
)
SAE = Column("sae", "string", "label of the SAE in the settings", nullable=False)
LATENT = Column("latent", "int", "index of the latent in its SAE, from 0", nullable=False)

KEYS = (ARM, CONTROL_KIND, MODEL_SEED, SAE_SEED, HOOKPOINT, SAE)
"""A row about one SAE of an arm is found by these columns."""
MODEL_KEYS = (ARM, CONTROL_KIND, MODEL_SEED, HOOKPOINT)
"""What a row about the activations of one model of an arm is about."""

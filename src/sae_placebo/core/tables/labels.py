"""The table of labels: how well single latents detect what is known to be true of the text."""

from __future__ import annotations

from sae_placebo.core.tables.base import Column, Table, alike
from sae_placebo.core.tables.keys import KEYS

COVERAGE = Table(
    "coverage",
    "arm × model seed × SAE seed × label",
    (
        *KEYS,
        Column("label", "string", "see [labels](labels.md)", nullable=False),
        Column(
            "group",
            "string",
            "token, window, context or rare: how far it can be read off tokens",
            nullable=False,
        ),
        Column(
            "f1",
            "float",
            "F1 of the best latent and threshold, chosen on one half of the held-out documents, scored on "
            "the other, both ways",
            "F1",
        ),
        Column("latent", "int", "the choice on all held-out documents, for people to look at"),
        Column("threshold", "float", "activation above which it predicts the label", "model units"),
        Column("fit_f1", "float", "the (optimistic) F1 of that choice", "F1"),
        *alike(
            "lookup_f1 bigram_f1 window_f1",
            "float",
            "what token predictors reach on the same tokens",
            "F1",
        ),
        Column("base_rate", "float", "share of tokens with the label", "share"),
        Column("n_positive", "int", "tokens with the label", "tokens", nullable=False),
        Column("n_tokens", "int", "tokens scored", "tokens", nullable=False),
        Column("reason", "string", "why f1 is null"),
    ),
    only="trials whose text has labels",
    note="Arms whose text was rewritten have no rows: their tokens have no labels.",
)

"""Tables on where latents come from: partners, the ladder, decoys, and arbitrary subsets."""

from __future__ import annotations

from sae_placebo.core.tables.base import Column, Table, alike
from sae_placebo.core.tables.keys import ARM, HOOKPOINT, LATENT, MODEL_SEED, SAE, SAE_SEED

PARTNERS = Table(
    "partners",
    "latent × SAE that it is held against",
    (
        ARM,
        MODEL_SEED,
        SAE_SEED,
        HOOKPOINT,
        SAE,
        LATENT,
        Column("class", "string", "as in `latents.parquet`", nullable=False),
        Column(
            "comparison",
            "string",
            "placebo; seed (the sibling); aa (a placebo against another re-draw of it)",
            nullable=False,
        ),
        Column("other", "string", "the arm's model and SAE seed that it is held against"),
        Column("reason", "string", "why there is no other SAE"),
        Column("correlation", "float", "with the best partner"),
        Column("null_correlation", "float", "the same once tokens are moved in time"),
        Column("has_partner", "float", "1 or 0"),
        Column("null_has_partner", "float", "whether the moved one would be a partner: 1 or 0"),
        Column("shared", "float", "as in `latents.parquet`; null but for `seed`"),
    ),
)

LADDER = Table(
    "ladder",
    "arm × hookpoint × SAE × subject × rung",
    (
        ARM,
        *alike("model_seed sae_seed", "int", "null: the row is about all SAEs of the arm"),
        HOOKPOINT,
        SAE,
        Column(
            "subject",
            "string",
            "latents (mean over the judged ones), activations (the whole vector)",
            nullable=False,
        ),
        Column(
            "rung",
            "string",
            "see [the ladder](../concepts/ladder.md); the constant is left out",
            nullable=False,
        ),
        *alike(
            "value low high", "float", "held-out R² up to the rung, with its 95% interval", "R²"
        ),
        *alike("gain gain_low gain_high", "float", "what the rung adds to the one before", "R²"),
        Column("n", "int", "latents that are judged, or dimensions of the activations"),
        Column("reason", "string", "why value or interval are null"),
    ),
)

FIT_CURVE = Table(
    "fit_curve",
    "arm × hookpoint × SAE × metric × portion of the text to fit on",
    (
        ARM,
        HOOKPOINT,
        SAE,
        Column("metric", "string", "a number that the ladder gives", nullable=False),
        Column(
            "portion",
            "int",
            "0, 1, 2, 3: an eighth, a quarter, half and all of the text; fewer where documents are few",
            nullable=False,
        ),
        Column("fit_tokens", "int", "tokens that were fitted on", "tokens", nullable=False),
        Column("fit_documents", "int", "documents of these", "documents", nullable=False),
        *alike(
            "value low high", "float", "the number, mean over seeds, with its 95% interval", "share"
        ),
        Column("reason", "string", "why value or interval are null"),
        Column(
            "change",
            "float",
            "what the second half of the text moved it by; only in the last row",
            "share",
        ),
        Column("change_se", "float", "standard error of that over documents and seeds", "share"),
        Column("withheld", "string", "why the number is not told elsewhere; null where it is"),
        *alike(
            "end end_low end_high",
            "float",
            "where the curve a + b n^-c would end, with its 95% interval; only in the last row",
            "share",
        ),
        Column("end_reason", "string", "why there is no end, or no interval of it"),
    ),
    note="Values stand here whether they are told elsewhere or not; see [the ladder](../concepts/ladder.md).",
)

DECOYS = Table(
    "decoys",
    "hookpoint × SAE × score",
    (
        HOOKPOINT,
        SAE,
        Column("arm", "string", "the trained arm", nullable=False),
        Column("placebo", "string", "the arm whose latents are decoys"),
        Column("score", "string", "name of the score", nullable=False),
        Column(
            "threshold",
            "float",
            "the lowest threshold at which decoys are at most `rate` of what passes; null: no "
            "threshold does",
        ),
        Column(
            "rate",
            "float",
            "share of decoys asked for (`structure.decoy_rate`)",
            "share",
            nullable=False,
        ),
        Column("achieved", "float", "share of decoys estimated at the threshold", "share"),
        *alike(
            "passing low high", "float", "trained latents that pass, with a 95% interval", "latents"
        ),
        Column("share", "float", "passing / n_targets", "share"),
        Column("decoys_passing", "float", "decoys at or above the threshold", "latents"),
        Column("n_targets", "int", "trained latents", "latents", nullable=False),
        Column("n_decoys", "int", "decoys", "latents", nullable=False),
        Column("reason", "string", "why there is no threshold"),
        Column("remark", "string", "what the interval leaves out"),
    ),
)

MECHANISM = Table(
    "mechanism",
    "SAE × prediction about arbitrary subsets",
    (
        SAE,
        Column("name", "string", "name of the prediction", nullable=False),
        Column("says", "string", "the prediction", nullable=False),
        Column("outcome", "string", "holds, fails, undecided or not estimable", nullable=False),
        Column("estimate", "float", "should be above 0"),
        *alike("low high", "float", "its 95% interval"),
        Column("n", "string", "what is behind it, in words", nullable=False),
        Column("reason", "string", "why it is undecided or not estimable", nullable=False),
        Column("hookpoint", "string", "`all`", nullable=False),
    ),
    only="trials with arms whose weights are drawn",
    note="Only arms whose weights are drawn are tested.",
)

"""Tables of numbers about arms and SAEs: measurements, effects, interactions and matching."""

from __future__ import annotations

from sae_placebo.core.tables.base import Column, Table, alike
from sae_placebo.core.tables.keys import ARM, HOOKPOINT, KEYS, SAE

_METRIC = Column("metric", "string", "what was measured: the metric's name", nullable=False)
_UNIT = Column("unit", "string", "the metric's unit", nullable=False)
_ENDS = "ends of the 95% interval; null with a reason"
_SPREAD = (
    "half the interval is t(df) × se; df is null where nothing varies, and for shares of latents, whose "
    "interval is not symmetric"
)
_P = "p value of a true effect"
_Q = "p within its family (Benjamini and Hochberg)"
_NONE = "the effect where there is nothing to find: 0"
_N_SEEDS = "SAE initializations, models on each side"

EFFECTS = Table(
    "effects",
    "contrast × hookpoint × SAE × metric",
    (
        _METRIC,
        HOOKPOINT,
        SAE,
        *alike("arm control", "string", "the effect is arm minus control", nullable=False),
        Column(
            "effect", "float", "difference of the means over seeds; null with a reason", "`unit`"
        ),
        *alike("low high", "float", _ENDS, "`unit`"),
        *alike("se df", "float", _SPREAD),
        Column("null", "float", _NONE, "`unit`", nullable=False),
        _UNIT,
        Column("better", "string", "whether higher or lower is better, or neither", nullable=False),
        *alike(
            "arm_value arm_low arm_high", "float", "the arm itself, with its interval", "`unit`"
        ),
        *alike(
            "control_value control_low control_high",
            "float",
            "the control itself, with its interval",
            "`unit`",
        ),
        Column(
            "metric_null",
            "string",
            "the metric's own null, in words and as a number per arm where there is one",
            nullable=False,
        ),
        Column("n_documents", "int", "held-out documents behind it", "documents", nullable=False),
        Column("n_tokens", "int", "held-out tokens behind it", "tokens", nullable=False),
        *alike("n_sae_seeds n_arm_models n_control_models", "int", _N_SEEDS),
        Column("reason", "string", "why effect or interval are null"),
        *alike(
            "aa_effect aa_low aa_high",
            "float",
            "the same for two halves of the control's own re-draws (A/A)",
            "`unit`",
        ),
        Column("aa_control", "string", "which re-draws were compared"),
        Column("aa_reason", "string", "why there is no A/A interval"),
        Column(
            "family",
            "string",
            "effects that are judged together: a group of metrics at one hookpoint, of one SAE",
            nullable=False,
        ),
        Column("p", "float", f"{_P} of 0; below .05 where the 95% interval leaves 0 out"),
        Column("q", "float", _Q),
        Column(
            "seoi", "float", "smallest effect of interest; null where none is set", "`seoi_unit`"
        ),
        Column("seoi_unit", "string", "unit of `seoi`: log odds for shares of latents"),
        Column("above_p", "float", f"{_P} that is smaller than `seoi`"),
        Column("above_q", "float", _Q),
        Column(
            "equivalent_p",
            "float",
            f"{_P} that is larger than `seoi`, or than half of the larger value if that is less",
        ),
        Column("equivalent_q", "float", _Q),
        Column(
            "conclusion",
            "string",
            "above the smallest effect of interest, different but small, equivalent, or inconclusive; null "
            "with a reason",
        ),
        Column("conclusion_reason", "string", "why it is null, or what is open"),
    ),
    note="""Contrasts are trained minus every other arm, and the margins of every factorial that the arms make
(`designs.py`); a `contrasts` list in the trial file replaces both. With two `model_seeds`, the variance
behind A/A is borrowed from other arms of the same family (controls that re-draw every layer are one family,
each data control is its own); with none, `aa_reason` says so.""",
)

CLAIMS = Table(
    "claims",
    "metric × hookpoint × SAE",
    (
        _METRIC,
        HOOKPOINT,
        SAE,
        Column("arm", "string", "the trained arm", nullable=False),
        Column(
            "against",
            "string",
            "the fair placebo from which it differs least, or against which nothing can be said",
            nullable=False,
        ),
        Column("effect", "float", "the arm minus that placebo; null with a reason", "`unit`"),
        *alike("low high", "float", _ENDS, "`unit`"),
        Column("null", "float", _NONE, "`unit`", nullable=False),
        _UNIT,
        Column(
            "claimed",
            "bool",
            "the intervals against all fair placebos leave the null out on one side",
            nullable=False,
        ),
        Column("reason", "string", "why it is not claimed"),
        Column("placebos", "strings", "the fair placebos that were compared", nullable=False),
    ),
    only="trials that have a fair placebo",
)

INTERACTIONS = Table(
    "interactions",
    "complete 2 × 2 of arms × hookpoint × SAE × metric",
    (
        Column(
            "design",
            "string",
            "`embeddings_x_blocks`, or `model_x_data.<data>.<placebo>`",
            nullable=False,
        ),
        _METRIC,
        HOOKPOINT,
        SAE,
        Column("effect", "float", "(a − b) − (c − d); null with a reason", "`unit`"),
        *alike("low high", "float", _ENDS, "`unit`"),
        *alike("se df", "float", _SPREAD),
        Column("null", "float", _NONE, "`unit`", nullable=False),
        _UNIT,
        Column("cells", "strings", "names of the arms a, b, c, d", nullable=False),
        Column("n_documents", "int", "held-out documents behind it", "documents", nullable=False),
        Column("n_tokens", "int", "held-out tokens behind it", "tokens", nullable=False),
        Column("n_sae_seeds", "int", "SAE initializations"),
        Column("n_models", "ints", "models of each cell"),
        Column("reason", "string", "why effect or interval are null"),
    ),
    only="trials whose arms make a 2 × 2",
)

MATCHING = Table(
    "matching",
    "arm × hookpoint × SAE",
    (
        ARM,
        HOOKPOINT,
        SAE,
        Column("l0", "float", "active latents per token: mean over the arm's SAEs", "latents"),
        *alike("l0_least l0_most", "float", "the least and the most of one SAE", "latents"),
        Column("n_saes", "int", "SAEs behind the mean"),
        Column("n_tokens", "int", "held-out tokens", "tokens"),
        Column(
            "target",
            "float",
            "L0 that the settings ask for (`k` or `l0`); null where a coefficient is fixed",
            "latents",
        ),
        Column("relative_to_target", "float", "l0 / target − 1"),
        Column("relative_to_trained", "float", "l0 / the trained arm's l0 − 1"),
        Column("tolerance", "float", "`measurement.l0_tolerance`, 0.05", nullable=False),
        Column(
            "matched",
            "bool",
            "whether relative_to_trained is within the tolerance; null with a reason",
        ),
        Column("reason", "string", "why matched is null"),
    ),
    note="""It says whether the arms may be compared: the L0 that was reached, on held-out tokens of all model
and SAE seeds, whatever was asked for. The head of the report names in red the arms for which `matched`
is false.""",
)

MEASUREMENTS = Table(
    "measurements",
    "SAE × metric",
    (
        *KEYS,
        Column("latent", "int", "null: the number is about a whole SAE"),
        _METRIC,
        Column("value", "float", "the metric of this SAE; null with a reason", "`unit`"),
        _UNIT,
        Column(
            "null_value",
            "float",
            "the metric's null for this SAE as a number, where there is one",
            "`unit`",
        ),
        Column("n", "int", "held-out tokens", "tokens", nullable=False),
        Column("reason", "string", "why value is null"),
    ),
)

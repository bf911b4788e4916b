"""Tables about single latents: statistics, classes and how far these depend on thresholds, passages."""

from __future__ import annotations

from sae_placebo.core.tables.base import Column, Table, alike
from sae_placebo.core.tables.keys import KEYS, LATENT

_R2 = "held-out R² of this predictor alone"
_RUNG = "held-out R² of the [ladder](../concepts/ladder.md) up to this rung"

LATENTS = Table(
    "latents",
    "arm × model seed × SAE seed × latent",
    (
        *KEYS,
        LATENT,
        Column(
            "class",
            "string",
            "the first [class](../concepts/classes.md) whose rule it meets",
            nullable=False,
        ),
        Column("n_tokens", "int", "held-out tokens", "tokens", nullable=False),
        Column("n_active", "int", "those on which it is active", "tokens", nullable=False),
        Column("density", "float", "share of tokens on which it is active", "share"),
        Column(
            "token_entropy_bits",
            "float",
            "entropy of the activation's shares per token id, over all activations",
            "bits",
        ),
        Column(
            "n_effective",
            "float",
            "2 to the entropy of the activation's shares per position",
            "tokens",
        ),
        Column(
            "token_entropy_null_bits",
            "float",
            "the entropy expected of `n_effective` random held-out positions",
            "bits",
        ),
        Column("effective_tokens", "float", "2 to the token entropy", "tokens"),
        Column("top_token", "string", "the heaviest token"),
        Column("top_token_mass", "float", "its share of the activation", "share"),
        Column(
            "top_token_recall",
            "float",
            "share of its occurrences on which the latent is active",
            "share",
        ),
        Column(
            "family_mass",
            "float",
            "share of the heaviest family of tokens (case, leading space and suffix folded)",
            "share",
        ),
        *alike("mean_activation max_activation", "float", "over active tokens", "model units"),
        Column(
            "origin",
            "string",
            "explained, not_explained, undetermined; see "
            "[where a latent comes from](../concepts/origin.md)",
            nullable=False,
        ),
        Column(
            "evidence",
            "string",
            "what speaks for the verdict, or why nothing can be said",
            nullable=False,
        ),
        Column("attribute", "string", "attribute of the token that explains most of its variance"),
        Column(
            "antipodality",
            "float",
            "largest product of encoder and decoder cosine with a living latent opposite in both; 0 "
            "where there is none",
        ),
        Column("attribute_r2", "float", "share of its variance that `attribute` explains", "share"),
        Column(
            "context_gain",
            "float",
            "R² that a bag of previous tokens adds to its top token, on that token alone",
        ),
        Column(
            "domain_auc",
            "float",
            "AUC inside the domain of the best simple predictor; null value 0.5; only of candidates",
        ),
        Column(
            "domain_precision", "float", "share of its active tokens in its best domain", "share"
        ),
        Column(
            "domain_recall",
            "float",
            "share of that domain's tokens on which it is active",
            "share",
        ),
        Column(
            "induction_active_d",
            "float",
            "rise on a repeated random block, over pairs on which it is active",
            "standard deviations",
        ),
        Column(
            "induction_d",
            "float",
            "rise on a repeated random block, over all tokens",
            "standard deviations",
        ),
        Column(
            "ngram_cover",
            "float",
            "share of its active tokens that its five most frequent pairs of tokens cover",
            "share",
        ),
        Column(
            "norm_correlation",
            "float",
            "correlation with the norm of the activation, in absolute value",
        ),
        Column(
            "output_lift",
            "float",
            "how many times as often its promoted tokens come next as the current token says; null "
            "value 1",
        ),
        Column(
            "pc_cosine",
            "float",
            "largest cosine of its decoder row with one of the 10 leading principal components, in "
            "absolute value",
        ),
        *alike(
            "placebo_r seed_r",
            "float",
            "correlation with the latent of the placebo's SAE, and of the sibling, that correlates most",
        ),
        Column("position_bits", "float", "mutual information of position and being active", "bits"),
        *alike("r2_constant r2_position r2_token r2_previous r2_pair r2_bag", "float", _R2),
        *alike("r2_window r2_placebo_readout r2_placebo_latents", "float", _RUNG),
        Column("unembedding_kurtosis", "float", "kurtosis of its cosines with W_U"),
        Column(
            "is_arbitrary",
            "bool",
            "meets the rule of arbitrary subsets, whatever class stands before it",
            nullable=False,
        ),
        Column(
            "mlp_auc",
            "float",
            "AUC inside the domain of a small MLP; null value 0.5; only of candidates",
        ),
        *alike(
            "placebo_partner seed_partner",
            "int",
            "the latent of the placebo's SAE, and of the sibling, that correlates most with it",
        ),
        *alike(
            "placebo_null_r seed_null_r",
            "float",
            "the correlation once tokens of the other side are moved in time",
        ),
        *alike(
            "has_placebo_partner has_seed_partner",
            "float",
            "1: it is a [partner](../concepts/partners.md); 0: it is not",
        ),
        *alike(
            "null_has_placebo_partner null_has_seed_partner",
            "float",
            "whether the moved one would be",
        ),
        Column(
            "shared",
            "float",
            "1: encoder and decoder rows are assigned to one latent of the sibling",
        ),
        Column("rule", "string", "what it fires strongly on, as a [rule](../concepts/rules.md)"),
        Column("rule_reason", "string", "why it has no rule; null where it has one"),
        Column("rule_bits", "float", "length of the rule", "bits"),
        Column(
            "rule_saved_bits",
            "float",
            "what the rule saves on documents that it was not built on, its length paid",
            "bits per strong firing",
        ),
        *alike(
            "rule_precision rule_recall rule_f1",
            "float",
            "of the rule, on held-out documents",
            "share",
        ),
    ),
    note="""Null where the latent has no activation, where it is too rare for the statistic, or where there is
nothing to hold it against; `evidence` and, in `partners.parquet`, `reason` say why.""",
)

SENSITIVITY = Table(
    "sensitivity",
    "SAE × threshold × direction",
    (
        *KEYS,
        Column("threshold", "string", "a field of `ClassThresholds`", nullable=False),
        Column("value", "float", "where it is", nullable=False),
        Column("change", "float", "−0.2 or 0.2", "share", nullable=False),
        Column("moved_to", "float", "the new value", nullable=False),
        Column("n_latents", "int", "latents that fire", "latents", nullable=False),
        Column("n_moved", "int", "those in another class then", "latents", nullable=False),
        Column("share_moved", "float", "n_moved / n_latents", "share"),
        Column("most_moved", "string", "“from > to”: the pair of classes that most moved between"),
        Column("reason", "string", "why there is no share"),
    ),
)

_PASSAGE = (
    LATENT,
    Column("rank", "int", "0 is the strongest", nullable=False),
    Column("document", "string", "name of the document", nullable=False),
    Column("tokens", "strings", "the passage", nullable=False),
    Column(
        "activations",
        "floats",
        "of the latent at each token; null where the position is masked",
        "model units",
        nullable=False,
    ),
    Column("peak", "int", "index of the strongest token in the lists", nullable=False),
)

PASSAGES = Table(
    "passages",
    "passage",
    (*KEYS, *_PASSAGE),
    note="""They are the top activating passages of latents drawn at random within each class. Each of a
latent's passages is from another document.""",
)

USE_PASSAGES = Table(
    "use_passages",
    "passage",
    (*KEYS, *_PASSAGE),
    only="SAEs whose model was asked what it uses",
    note="They are as in `passages.parquet`, of the latents that have a card.",
)

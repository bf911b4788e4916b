"""Tables on what a model uses: latents, what reads and writes them, and directions that are no latents."""

from __future__ import annotations

from sae_placebo.core.tables.base import Column, Table, alike
from sae_placebo.core.tables.keys import ARM, HOOKPOINT, KEYS, LATENT, SAE

_SWAP = "share of a full swap"
_ASKED = "SAEs whose model was asked what it uses"
_SHOWN = "It is of the latents that have a card."

USE = Table(
    "use",
    "latent of each SAE whose model was asked what it uses",
    (
        *KEYS,
        LATENT,
        Column(
            "use",
            "string",
            "used, not_used or undetermined; null: the latent was not drawn",
        ),
        Column("use_reason", "string", "why it is undetermined; null: the latent was not drawn"),
        Column("use_weight", "float", "latents that a drawn one stands for", "latents"),
        *alike(
            "effect effect_low effect_high",
            "float",
            "mean cost of removing it, from firings drawn by importance; bounds of the logarithm, 5% below "
            "the lower (Student's t) and nominally .5% above the upper (bootstrap-t), by document",
            _SWAP,
        ),
        *alike(
            "beside beside_low beside_high",
            "float",
            "cost of removing it where many others are removed too; says that it is redundant",
            _SWAP,
        ),
        Column(
            "effect_resampled",
            "float",
            "`effect` when it becomes what another firing held",
            _SWAP,
        ),
        Column("effect_documents", "float", "documents it was ablated in", "documents"),
        Column("null_effect", "float", "mean cost of null directions", _SWAP),
        Column(
            "null_firings",
            "float",
            "firings at which null directions were ablated, some of those of `effect`",
            "firings",
        ),
        Column("effect_at_nulls", "float", "the latent's own effect at these firings", _SWAP),
        *alike(
            "null_ratio null_ratio_low null_ratio_high",
            "float",
            "cost of removing it over the mean cost of null directions, at the same firings; bounds as those "
            "of `effect`",
        ),
        Column("use_p", "float", "rank among the standardized null directions of all latents"),
        Column("use_p_effect", "float", "p of an effect below the smallest effect of interest"),
        Column(
            "use_q",
            "float",
            "smallest false discovery rate at which it is used, by the larger of both p",
        ),
        Column("n_nulls", "float", "how many null directions of its own"),
        Column("beats_nulls", "float", "1 or 0: `use_p` alone, after Benjamini-Hochberg"),
        Column(
            "survives_joint", "float", "1: it is among those that can all be removed at once; or 0"
        ),
        Column(
            "uniform_firings",
            "float",
            "firings drawn uniformly at which it was ablated; null: it could not be *not used* any more",
            "firings",
        ),
        Column("uniform_effect_high", "float", "upper bound of its effect there", _SWAP),
        Column(
            "uniform_ratio_high",
            "float",
            "upper bound there of its cost over null directions'; below 1: surely no costlier",
        ),
        Column(
            "last_in_high",
            "float",
            "upper bound there of what it adds to the cost of removing the joint set",
            _SWAP,
        ),
        Column(
            "unseen_share",
            "float",
            "largest share of its firings (99%) that may be critical and were not seen",
            "share",
        ),
        Column(
            "tokens_needed",
            "float",
            "held-out tokens at which it would fire often enough to be *not used*; null: it does",
            "tokens",
        ),
        Column("group", "float", "which group of related latents it is in; null: none"),
        Column("group_size", "float", "latents in the group", "latents"),
        *alike(
            "group_effect group_effect_low",
            "float",
            "cost of removing the whole group where a member fires, and its lower bound",
            _SWAP,
        ),
        Column("group_p", "float", "rank of that cost among null groups"),
        Column("group_used", "float", "1: the group is used as a whole; or 0"),
        Column("screen", "float", "Fisher sensitivity to second order", "nats per firing"),
        Column("screen_ratio", "float", "`screen` over that of matched random directions"),
        Column("screen_p", "float", "rank of `screen` among matched random directions"),
        *alike(
            "path_unembedding path_qk path_ov path_mlp",
            "float",
            "share of first-order reading by path",
            "share",
        ),
        Column("written_p", "float", "that a head or MLP writes it more than random encoders"),
        Column("read_p", "float", "that something reads it more than random directions"),
        Column(
            "tied", "float", "1: writers and readers both beat their nulls; null where not judged"
        ),
        *alike("class origin evidence", "string", "as in `latents.parquet`", nullable=False),
        Column("n_active", "int", "as in `latents.parquet`", "tokens", nullable=False),
    ),
    only=_ASKED,
)

READERS = Table(
    "readers",
    "latent × one of the main parts that read it",
    (
        *KEYS,
        LATENT,
        Column("rank", "int", "0 is the largest share", nullable=False),
        Column("reader", "string", "name of the part that reads", nullable=False),
        Column("kind", "string", "unembedding, qk, ov or mlp", nullable=False),
        Column("share", "float", "of all reading", "share"),
        Column(
            "signed",
            "float",
            "what the latent adds to the loss of the next tokens by this reader, to first order",
            "nats",
        ),
        Column(
            "percentile",
            "float",
            "share of random directions at the same angle that have a smaller score",
            "share",
        ),
        Column("n", "int", "firings", "firings", nullable=False),
    ),
    only=_ASKED,
)

WRITERS = Table(
    "writers",
    "latent × one of the main parts that write it",
    (
        *KEYS,
        Column("rank", "int", "0 is the largest share", nullable=False),
        LATENT,
        Column("part", "string", "name of the part that writes", nullable=False),
        Column(
            "kind",
            "string",
            "embedding, head, mlp or rest (biases, and what rounding leaves)",
            nullable=False,
        ),
        *alike("layer head", "int", "where the part is; −1 where it has none", nullable=False),
        *alike("share low high", "float", "of all writing, with its 95% interval", "share"),
        Column(
            "null95", "float", "95th percentile of the part's share over random encoders", "share"
        ),
        Column(
            "angle_null95",
            "float",
            "the same over random encoders at the latent's angle, on its own tokens",
            "share",
        ),
        Column("angle_p", "float", "share of these encoders with at least as large a share"),
        Column(
            "pseudo_percentile",
            "float",
            "random encoders for which the part has a smaller share",
            "%",
        ),
        Column("pseudo_p", "float", "p-value among random encoders, family-wise"),
        Column(
            "peers_percentile",
            "float",
            "latents that fire about as often for which the part has a smaller share",
            "%",
        ),
        Column("above", "bool", "whether it beats random encoders", nullable=False),
        Column("above_both", "bool", "and those at the latent's angle as well", nullable=False),
        Column("n", "int", "firings", "firings", nullable=False),
    ),
    only=_ASKED,
)

DIRECTIONS = Table(
    "directions",
    "direction that is no latent, asked in the same way",
    (
        *KEYS,
        Column(
            "kind",
            "string",
            "`pseudo` (random directions that fire as latents do), `covariance` (the same, of the "
            "activations' covariance), `untrained` (of that covariance too, each on its own top tokens) or "
            "`error` (principal components of what the SAE misses)",
            nullable=False,
        ),
        Column("index", "int", "which of its kind, from 0", nullable=False),
        Column("variance", "float", "share of the error's variance", "share"),
        *alike("effect effect_low effect_high", "float", "as in `use.parquet`", _SWAP),
        Column("null_effect", "float", "as in `use.parquet`", _SWAP),
        Column("null_firings", "int", "as in `use.parquet`", "firings", nullable=False),
        Column("effect_at_nulls", "float", "as in `use.parquet`", _SWAP),
        Column("p", "float", "rank among the standardized null directions of its kind"),
        Column("documents", "int", "documents it was ablated in", "documents", nullable=False),
    ),
    only=_ASKED,
)

PATCHED = Table(
    "patched",
    "latent × reader that was patched",
    (
        *KEYS,
        LATENT,
        Column("reader", "string", "as in `readers.parquet`", nullable=False),
        Column("kl", "float", "cost of patching the reader", "nats per firing"),
        Column("null", "float", "the same for null directions", "nats per firing"),
        Column("p", "float", "rank among null directions"),
        Column("n_nulls", "int", "null directions", nullable=False),
        Column("n_firings", "int", "firings", "firings", nullable=False),
    ),
    only=_ASKED,
    note=_SHOWN,
)

TIES = Table(
    "ties",
    "hookpoint × SAE × arm, contrast or A/A × measure × class",
    (
        HOOKPOINT,
        SAE,
        Column(
            "comparison",
            "string",
            "share (of an arm), contrast (the trained arm less a re-draw) or aa (half of a control's "
            "re-draws less the other half)",
            nullable=False,
        ),
        ARM,
        Column("control", "string", "the other arm; null for a share, and where it is lacking"),
        Column(
            "measure",
            "string",
            "tied, or one of its two claims alone: written, read",
            nullable=False,
        ),
        Column("class", "string", "of the latents; all: every latent", nullable=False),
        *alike("value low high", "float", "with its 95% interval", "share"),
        Column(
            "dispersion",
            "float",
            "variance between SAEs over that of counting, of all such shares; below 1 counts as 1",
        ),
        *alike("n_latents control_latents", "int", "latents judged", "latents", nullable=False),
        *alike("n_saes control_saes", "int", "SAEs that they are of", "SAEs", nullable=False),
        Column("reason", "string", "why there is no value"),
    ),
    only=_ASKED,
)

"""The table of baselines: existing methods and SAEs on the same activations, and bits."""

from __future__ import annotations

from sae_placebo.core.tables.base import Column, Table, alike
from sae_placebo.core.tables.keys import MODEL_KEYS

BASELINES = Table(
    "baselines",
    "arm × model seed × hookpoint × baseline or SAE × distortion",
    (
        *MODEL_KEYS,
        Column("baseline", "string", "`sae` or a simpler baseline", nullable=False),
        Column("reading", "string", "which SAE, `<label>/<seed>`; null for baselines"),
        Column("n_atoms", "float", "directions of the dictionary"),
        Column("sparsity", "float", "atoms per token in the sparse code", "atoms"),
        *alike(
            "explained_variance ev_low ev_high",
            "float",
            "share of variance that the sparse code explains, with an interval over documents",
            "share",
        ),
        Column(
            "lookup_relative_ev",
            "float",
            "share explained of what a table of the current token leaves",
            "share",
        ),
        Column(
            "native_ev",
            "float",
            "variance that the baseline's own code explains, where it has one",
            "share",
        ),
        Column(
            "native_sparsity",
            "float",
            "atoms per token in the baseline's own code, where it has one",
            "atoms",
        ),
        *alike(
            "pursuit_ev pursuit_nonnegative_ev",
            "float",
            "variance that an SAE's decoder explains with codes by pursuit",
            "share",
        ),
        Column("pursuit_tokens", "float", "tokens pursued", "tokens"),
        Column("distortion", "float", "share of variance left that is asked for", "share"),
        Column("reached_distortion", "float", "share of variance left that was reached", "share"),
        *alike("bits bits_low bits_high", "float", "with an interval over documents", "bits/token"),
        *alike("bits_indices bits_values bits_residual", "float", "of the parts", "bits/token"),
        Column(
            "bits_dictionary",
            "float",
            "of the directions, spread over the training tokens",
            "bits/token",
        ),
        Column("bits_with_dictionary", "float", "`bits` with `bits_dictionary`", "bits/token"),
        Column("bits_atoms", "float", "atoms a code was allowed", "atoms"),
        Column(
            "coder_ratio",
            "float",
            "length really written by a range coder / length counted; null without `[baselines]`",
        ),
        *alike(
            "probe_auc probe_selectivity probe_accuracy",
            "float",
            "probes on 5 atoms, mean over labels",
        ),
        *alike("probe_auc_1 probe_selectivity_1 probe_accuracy_1", "float", "probes on one atom"),
        Column("probe_labels", "float", "labels probed"),
        Column("probe_reason", "string", "why no label was probed"),
        Column("n_tokens", "float", "tokens scored", "tokens"),
        Column("n_documents", "float", "documents scored", "documents"),
        Column("reason", "string", "why it could not be fitted or coded"),
    ),
    note="""See [description length](../concepts/description-length.md). What SAEs save is the metric
`bits_saved`.""",
)

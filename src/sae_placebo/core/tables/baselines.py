"""The table of baselines: existing methods and SAEs on the same activations, and bits."""

from __future__ import annotations

from sae_placebo.core.tables.base import Column, Table, alike
from sae_placebo.core.tables.keys import ARM, HOOKPOINT, MODEL_KEYS, SAE

BASELINES = Table(
    "baselines",
    "arm × model seed × hookpoint × baseline or SAE × coding × distortion",
    (
        *MODEL_KEYS,
        Column("baseline", "string", "`sae` or a simpler baseline", nullable=False),
        Column("reading", "string", "which SAE, `<label>/<seed>`; null for baselines"),
        Column(
            "coding",
            "string",
            "`pursuit`, `encoder` (an SAE's own) or `dense` (no atoms); null where it could not be fitted",
        ),
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
        Column(
            "bits_atoms",
            "float",
            "atoms a code was allowed, as chosen; 0: dense PCA was shorter",
            "atoms",
        ),
        Column(
            "bits_step",
            "float",
            "step of coefficients, as chosen, in steps that would spend the error evenly",
        ),
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
        Column("n_chosen", "float", "tokens that settings were chosen on", "tokens"),
        Column("n_documents", "float", "documents scored", "documents"),
        Column(
            "reason",
            "string",
            "why it could not be fitted or coded; beside bits: settings were chosen on few tokens, or "
            "methods fitted on less text than the SAEs",
        ),
    ),
    note="""See [description length](../concepts/description-length.md). What latents save
beyond every method is in `marginal`.""",
)

MARGINAL = Table(
    "marginal",
    "arm × hookpoint × SAE × existing method",
    (
        ARM,
        HOOKPOINT,
        SAE,
        Column(
            "baseline",
            "string",
            "the existing method; `best`: the one with the fewest bits on the documents to choose on; "
            "`common`: the one that is best in the trained arm, beyond which arms are compared",
            nullable=False,
        ),
        Column(
            "method",
            "string",
            "its name; of `best` and `common`, those of all models, joined by commas",
        ),
        Column("n_atoms", "float", "atoms of each of the two dictionaries, 2m", "atoms"),
        Column("bits_pca", "float", "dense PCA, R(PCA)", "bits/token"),
        Column("bits_halved", "float", "the method with m atoms", "bits/token"),
        Column("bits_doubled", "float", "the method with 2m atoms", "bits/token"),
        Column("bits_joined", "float", "m of its atoms and m latents", "bits/token"),
        *alike(
            "atoms_doubled atoms_joined",
            "float",
            "atoms a code was allowed in each, as chosen; 0: dense PCA was shorter",
            "atoms",
        ),
        *alike(
            "gain gain_low gain_high",
            "float",
            "`bits_doubled` − `bits_joined`, with its 95% interval over documents and seeds",
            "bits/token",
        ),
        *alike("share share_low share_high", "float", "the same over `bits_pca`", "share"),
        *alike(
            "gaussian gaussian_low gaussian_high",
            "float",
            "`gain` on Gaussian activations with the same means and covariances; of `best` and `common`",
            "bits/token",
        ),
        *alike("above above_low above_high", "float", "`gain` − `gaussian`", "bits/token"),
        Column("n_saes", "int", "SAEs that the row is about", "SAEs"),
        Column(
            "reason",
            "string",
            "why a number or interval is null; or that few tokens chose, or that methods had less text",
        ),
    ),
    note="""See [marginal structure](../concepts/structure.md). Sizes and bits are means over all SAEs of the
arm.""",
)

"""The terms that no registry within the report's reach describes, one entry each.

Classes of latents and metrics are described where they are computed. Scores and baselines are too, but in
modules that the report may not import; a test compares their definitions here with those.
"""

from __future__ import annotations

from typing import NamedTuple


class Term(NamedTuple):
    """One term, with what a reader needs to understand a number of that name.

    Attributes:
        name: The name, as tables and pages write it.
        definition: What it is, in one or two sentences.
        unit: Unit of the number; empty where it is no number.
        null: Value where there is nothing to find, in words; empty where it is no number.
        source: The paper or module that defines it, with deviations.
        page: Page of docs/concepts that says more, without its ending.
    """

    name: str
    definition: str
    unit: str = ""
    null: str = ""
    source: str = ""
    page: str = ""


_R2 = "share of variance"
_NO_BETTER = "0: no better than the mean"

WORDS: tuple[Term, ...] = (
    Term("SAE", "Sparse autoencoder: a dictionary trained to write each activation as a sum of few of "
         "its directions.", page="architectures"),
    Term("latent", "One unit of an SAE. It is not called a feature here: whether it is one is the "
         "question."),
    Term("dead", "A latent that is never active on the held-out tokens; it may be active elsewhere.",
         page="classes"),
    Term("judged", "A latent that is active on at least `min_firings` held-out tokens; of others nothing "
         "is said but that they are dead or ultra-rare.", page="classes"),
    Term("arm", "One of the things compared: the reference model with its controls applied. All arms "
         "read the same tokens in the same order, and their SAEs share recipe, data order and initial "
         "weights."),
    Term("trained arm", "The arm without any control: the reference model as it is."),
    Term("control", "The change that makes an arm: of the model, of the data or of the dictionary, such "
         "as drawing the weights anew. The trained arm has none."),
    Term("placebo", "An arm in which the learning in question has been destroyed. What an SAE shows "
         "there is no evidence of learning."),
    Term("reference placebo", "The one arm that single latents are held against: a re-draw of the weights, "
         "calibrated and with the embeddings kept, where there is one. An SAE is held against its SAE of "
         "another seed, and a placebo against another re-draw.", source="`placebos`.", page="partners"),
    Term("given", "Of an SAE: read from a file instead of trained by the trial. Given minus retrained is "
         "tokens, text and recipe together; retrained minus a placebo is the model.", page="given"),
    Term("contrast", "Two arms that are compared, the first minus the second."),
    Term("factorial", "Arms that cross two things, each real or random. They say which of the two an "
         "effect is owed to."),
    Term("interaction", "The effect of one thing where another is real, minus the same effect where "
         "the other is random.", "the metric's", "0: the two add up", "`interactions`.", "statistics"),
    Term("effect", "The first arm's value minus the second arm's, on the same held-out tokens.",
         "the metric's", "0", "`stats.effects`.", "statistics"),
    Term("interval", "The range of effects that the data do not rule out: documents are resampled, crossed "
         "with SAE seeds and model seeds. If it holds the null, this trial cannot tell.",
         "the metric's", "", "`stats.effects`.", "statistics"),
    Term("null", "The value that a score takes where there is nothing to find. An effect's null is 0; "
         "a metric's own null is often not.", page="statistics"),
    Term("A/A", "The same calculation between two re-draws of one control, where nothing but chance "
         "differs. An effect that is no larger than its A/A interval is no finding.",
         "the metric's", "0", "`stats.effects`.", "calibration"),
    Term("calibration", "How often intervals leave 0 out where the truth is 0, measured on A/A trials.",
         "share of intervals", "1 minus the level: .05", "`calibration`.", "calibration"),
    Term("validity", "What the test behind a headline does where the truth is known: how often A/A intervals "
         "leave 0 out, how often intervals hold a planted truth, how often planted effects are found.",
         "share", "5% of A/A, 95% of planted truths", "`benchmarks/validity.py`.", "calibration"),
    Term("power", "How often a trial of a given size finds a difference of a given size.", "share of trials",
         "half of 1 minus the level: a false finding of that sign", "`power`.", "statistics"),
    Term("n", "What a number was computed over: documents, SAE seeds, models, latents or tokens. "
         "“Models 1 vs 2” counts the model draws in the first and the second arm."),
    Term("model seed", "One re-draw of a control: another random model from the same recipe."),
    Term("SAE seed", "One initialization of the SAE, the same in every arm."),
    Term("fair placebo", "A placebo in which the current token explains as much as in the trained model: a "
         "calibrated re-draw, or a surrogate. Headlines are claimed against all of them.",
         source="`stats.claims`.", page="statistics"),
    Term("sibling", "The SAE of another SAE seed on the same activations.", source="`placebos`.",
         page="partners"),
    Term("hookpoint", "Where in the model activations are read: resid_post.3 is the residual stream "
         "after block 3, z.3 are the heads of its attention, mlp_in.3 is what its MLP reads."),
    Term("fold", "One group of documents left out. What costs too much to resample is computed once with "
         "each of 20 groups left out, and bootstrap replicates are made from that.", "", "",
         "`latents.base`; the delete-a-group jackknife, Kott 2001.", "statistics"),
    Term("to fit, to choose, to score", "What a document serves for: predictors are fitted on some, settings "
         "chosen on others, and R² is taken on a third part. The ladder is fitted on training text.",
         source="`latents.base`, `latents.ladder.fit_text`.",
         page="ladder"),
    Term("held out", "Documents that no SAE was trained on; everything in the tables is computed there."),
    Term("masked", "Left out of every arm's measurements: the first position, padding, and norm outliers "
         "of any arm.", page="masking"),
    Term("norm outliers", "Tokens whose activation is many times longer than the median.", "tokens",
         page="masking"),
    Term("EV, L0", "Explained variance: the share of the activations' variance that an SAE "
         "reconstructs. L0: the number of latents active on a token.", "share; latents per token",
         "that of the same recipe on a Gaussian; none", "The metrics `explained_variance` and `l0`."),
    Term("density", "Share of held-out tokens on which a latent is active.", "share of tokens", "none"),
    Term("token entropy", "Entropy of a latent's activation over token ids: 0 when one token "
         "holds all of it. It grows with the number of active positions.", "bits",
         "the entropy of as many random positions", "`latents.metrics.tokens`.", "classes"),
    Term("top token, mass, recall", "The token id that holds most of a latent's activation; the share "
         "that it holds; the share of that token's occurrences on which the latent is active.", "share",
         "none", "`latents.metrics.tokens`.", "classes"),
    Term("class", "What kind of latent: the first rule of one decision list that it meets. A description, "
         "not a verdict.", "", "", "`classification`.", "classes"),
    Term("arbitrary subset", "A latent that fires within one recognizable context, on a part of it that "
         "nothing simple predicts.", "", "", "Seen by Bricken et al. 2023; the rule is ours.", "classes"),
    Term("domain", "A recognizable context: where the text has labels, a scope of its code, such as a "
         "docstring; else a cluster of documents that use the same words.",
         source="`latents.columns.domains`.", page="classes"),
    Term("attribute", "A yes-or-no property of the current token: its spelling, or a label of the text.",
         "", "", "Gurnee et al. 2024 (arXiv 2401.12181); the list is ours.", "classes"),
    Term("rule", "A short list of clauses over the current and the previous token (which, how spelled, under "
         "which label) that says where a latent fires strongly. P and R are its precision and recall on "
         "held-out documents.", "", "the same procedure on placebo latents", "`latents.rules`.", "rules"),
    Term("replicated", "Of a latent: the SAE of another seed has a partner of it.",
         source="`latents.partners.partners`.", page="partners"),
    Term("label", "What is known of a token of the text, such as “inside a loop”.", page="coverage"),
    Term("coverage", "F1 of the best latent and threshold for a label, chosen on some documents and scored "
         "on others.", "F1", "what predictors without a model reach",
         "`latents.metrics.coverage`.", "coverage"),
    Term("partner", "The latent of another SAE whose activations on the same tokens correlate most with a "
         "latent's own, if they do so above the threshold and above chance at its firing rate.",
         "correlation", "the best correlation after one side's tokens are moved within their documents",
         "Bricken et al. 2023 (universality); thresholds and nulls are ours. `latents.partners.partners`.",
         "partners"),
    Term("shared", "A latent whose encoder and decoder rows are both assigned to one latent of the sibling, "
         "with cosines of .7 or more.", "share of latents", "the same of random directions",
         "Paulo and Belrose 2025 (arXiv 2501.16615). `latents.partners.assignment`.", "partners"),
    Term("decoy", "A latent of the reference placebo, or of a dictionary of the trained model whose rows no "
         "training chose, scored like a trained one: decoys that pass a "
         "threshold tell how many trained latents pass with nothing to them.", "latents",
         "as many trained latents as decoys pass",
         "Target-decoy estimation (Elias and Gygi 2007). `latents.origin.decoys`.", "partners"),
    Term("ladder", "Nested predictors of a latent, or of the activation vector, from position and token up "
         "to the placebo's activations and latents; R² on documents that serve to score.",
         _R2, _NO_BETTER, "`latents.ladder`.", "ladder"),
    Term("rung", "One step of the ladder: one more predictor, beside all the ones below.", _R2,
         "its gain is 0", "`latents.ladder`.", "ladder"),
    Term("withheld", "Measured, and not told, since twice the text to fit on still moves it by a tenth of "
         "itself or more, its standard error counted in.", "", "", "`stats.convergence`.", "ladder"),
    Term("stable", "Of a latent: it is replicated. Shares given stable are of such latents alone, as if "
         "they fired as often as the trained arm's.", "share of stable latents",
         "the same share in the placebo arms", "`latents.metrics.ladder_shares`.", "origin"),
    Term("left over", "1 − R² of the ladder up to the placebo's activations: what no token "
         "and no untrained model accounts for.", _R2,
         "the same of the placebo beside another re-draw of it", "`latents.ladder`.", "ladder"),
    Term("origin", "Where a latent comes from: explained, not explained or undetermined. It is about origin, "
         "not about use.", "share of latents", "the same in a placebo, held against another re-draw",
         "`latents.origin.rule`.", "origin"),
    Term("evidence", "What speaks for a latent's verdict: the first rung that explains enough of it, a "
         "partner, or why nothing can be said.", source="`latents.origin.rule`.", page="origin"),
    Term("use", "Whether the model's predictions hang on a direction at a hookpoint: used, not used or "
         "undetermined. It is about these tokens and predictions a few tokens ahead.", "share of latents",
         "a random direction is as costly as its null directions", "`causal.use.rule`.", "use"),
    Term("used", "A direction whose removal costs more than that of null directions and at least the "
         "smallest effect of interest, by Benjamini-Hochberg on the larger p of both over the latents asked.",
         "share of latents", "no more than the false discovery rate", "`causal.use.rule`.", "use"),
    Term("not used", "A claim of its own, not what is left: at firings drawn uniformly, what removing a "
         "direction costs is surely negligible, alone and as the last of all that can go at once.",
         "share of latents", "none: it is a claim of equivalence", "`causal.use.rule`.", "use"),
    Term("costlier", "The share of latents that cost more than null directions, 1 − π₀, whether or not a "
         "single one can be shown to: read off how many p-values are above one half. Null directions are "
         "isotropic, so it counts all that lies where activations vary.", "share of latents",
         "that of an untrained dictionary on the same model; 0 of pseudo-latents and of the placebo",
         "Storey 2002. `causal.use.null_test`.", "use"),
    Term("untrained dictionary", "Directions drawn from the activations' covariance, each firing on its own "
         "top tokens, as many as a latent fires on: what the test of use finds on this model without an SAE.",
         "share used", "what an SAE has to beat", "`causal.use.control_directions`.", "use"),
    Term("covariance direction", "A direction drawn from the activations' covariance, held by the same "
         "tokens as some latent, and as much.", "share used", "what an SAE has to beat",
         "`causal.use.control_directions`.", "use"),
    Term("last-in marginal", "What it costs that a direction is gone as well where all that can be removed "
         "together, and what is related to it, is gone already; at its own firings.",
         "share of a full swap", "0", "`causal.use.absence`.", "use"),
    Term("unseen share", "With so many firings ablated, the largest share of a direction's firings that may "
         "be critical and were not among them, at 99%.", "share", "", "`causal.use.absence`.", "use"),
    Term("use undetermined", "Neither used nor not used can be said; the reason says why.",
         "share of latents", "", "`causal.use.rule`.", "use"),
    Term("carried, not used", "Explained and not used: structure of the data that the model passes along.",
         "share of latents", "the same cell in the placebo",
         "`causal.use.rule`, `latents.origin.rule`.", "use"),
    Term("full swap", "What it costs to replace the whole activation of a token by that of another one: the "
         "unit of effects. Cost is the KL divergence from the unedited predictions.", "nats", "0",
         "`causal.use.ablation`.", "use"),
    Term("null direction", "A random direction of the same length and the same angle to the activation as "
         "the edit that it stands beside: what any such edit costs.", "share of a full swap", "",
         "`causal.use.null_directions`.", "use"),
    Term("smallest effect of interest", "Effect that a used direction surely has at least, a stated choice; "
         "what is negligible is a fixed part of it.", "share of a full swap", "",
         "`causal.use.spec`.", "use"),
    Term("stands for", "Latents asked are drawn evenly from every class and origin; each stands for as many "
         "latents of its kind as there are per one drawn, and shares count it so often.", "latents", "1",
         "Horvitz and Thompson 1952; effective n: Kish 1965. `causal.use.sampling`.", "use"),
    Term("joint removal", "All of many latents removed at once at every token, the least used first. S* is "
         "the most that can go within the limit.", "share of a full swap", "0", "`causal.use.joint`.", "use"),
    Term("worst masks", "Which of S* to remove where, sought by gradients so as to cost the most.",
         "share of a full swap", "0", "`causal.use.worst`.", "use"),
    Term("pseudo-latent", "A random direction held by the same tokens as some latent, and as much: p-values "
         "of such must be uniform.", "p", "uniform: 5% at or below .05", "`causal.use.base`.", "use"),
    Term("error direction", "A principal component of what the SAE leaves out, x − x̂, asked like a "
         "latent.", "share of a full swap", "its null directions", "`causal.use.base`.", "use"),
    Term("writer", "A head, MLP or embedding before the hookpoint; its share of a latent is what its output "
         "adds along the latent's encoder row, of what all add.", "share", "the same share of random encoder "
         "rows: a writer counts above their 95th percentile", "`causal.circuits.writers`.", "use"),
    Term("reader", "Queries, keys or values of a head, an MLP, or the unembedding, behind the hookpoint; its "
         "score is what a latent does to predictions through it alone, at first order.", "share",
         "the score of random directions at the same angle to the activation",
         "`causal.circuits.readers`.", "use"),
    Term("path split", "A latent's reader scores by kind: unembedding, QK, OV and MLPs. Scores are squares: "
         "what readers do together is in no share.", "share", "that of the placebo's latents",
         "`causal.circuits.readers`.", "use"),
    Term("path patch", "A finite edit of what one reader alone reads, to confirm what its gradient says.",
         "nats", "the same edit along null directions", "`causal.circuits.patching`.", "use"),
    Term("tied to circuitry", "A latent that a head or an MLP writes and that something reads, both above "
         "their nulls; the largest of all parts is held against the largest of each null direction.",
         "share of latents", "the shares in both re-draws, with and without real embeddings",
         "`causal.circuits.ties`.", "circuits"),
    Term("distortion", "Share of the activations' variance that a code leaves out; codes are compared "
         "at the same one.", _R2, "none", "`baselines.rate`.", "description-length"),
    Term("bits per token", "Length of a code of one activation vector at a stated distortion: which atoms, "
         "their values, and what is left over; under probabilities from other documents.", "bits/token",
         "none by itself: dense PCA on the same arm", "`baselines.rate`.",
         "description-length"),
    Term("marginal structure", "Bits per token that m latents of an SAE save beside m atoms of an existing "
         "method, compared with m more of its atoms; neither code is longer than dense PCA. Arms are "
         "compared beyond one method, the best of the trained arm.",
         "bits/token", "the same on Gaussian activations with the same means and covariances",
         "`baselines.marginal`.", "structure"),
    Term("probe", "A logistic regression of a label on the codes of the few atoms that differ most with it, "
         "scored on other documents. Its selectivity is its AUC less that of control tasks, random answers "
         "that can be learned by remembering tokens.",
         "AUC", "0.5; selectivity 0", "Kantamneni et al. 2025 (arXiv 2502.16681); Hewitt and Liang 2019. "
         "`baselines.probing`.",
         "description-length"),
    Term("residual norm", "Mean length of the activation vectors at the hookpoint.", "model units", "none"),
    Term("block output / embedding", "Norm of what the blocks add, over the norm of the token's "
         "embedding. How much of the token is left in the activation is said by R², not by this.",
         "ratio", "0: the blocks add nothing"),
    Term("R² on current token", "Share of the activations' variance that a table with one vector per "
         "token id explains: how much of the token is left in them.", _R2, _NO_BETTER),
    Term("participation ratio", "Effective number of dimensions that the activations use: (sum of "
         "variances)² over the sum of squared variances, along principal axes.", "dimensions",
         "d_in: all directions alike"),
    Term("attention entropy", "Mean entropy of the attention weights: high when heads spread evenly "
         "over the prefix; “possible” is what an even spread would give.", "bits", "the possible value"),
)  # fmt: skip

_OF_ORIGIN = (
    "share of all latents",
    "the same share in the placebo arms, held against another re-draw",
)

ORIGINS: tuple[Term, ...] = (
    Term("explained", "Held-out predictors that know tokens, positions, embeddings or a placebo model "
         "explain at least the limit of its variance; or a placebo SAE has a partner of it.",
         *_OF_ORIGIN, "`latents.origin.rule`.", "origin"),
    Term("not_explained", "No rung of the ladder explains it, by more than two standard errors; it has no "
         "partner in the placebo; and the SAE of another seed has it too. It means: not explained by what "
         "was tried.",
         *_OF_ORIGIN, "`latents.origin.rule`.", "origin"),
    Term("undetermined", "Neither can be said; the evidence says why.", *_OF_ORIGIN,
         "`latents.origin.rule`.", "origin"),
)  # fmt: skip

RUNGS: tuple[Term, ...] = tuple(
    Term(name, definition, _R2, null, "`latents.ladder`.", "ladder")
    for name, definition, null in (
        ("constant", "Nothing is read: the mean on the documents that serve to fit.", "0"),
        ("position", "The position in the row, in 16 bins.", _NO_BETTER),
        ("token", "A table of the current token.", _NO_BETTER),
        ("pair", "A table of the previous and the current token.", _NO_BETTER),
        ("bag", "Linearly, two decayed sums of the embeddings of earlier tokens.", _NO_BETTER),
        ("window", "Linearly, the bag and the embeddings of the last 8 tokens, place by place.",
         _NO_BETTER),
        ("placebo_readout", "Linearly, with all that: the placebo model's activations at the same "
         "token.", "the value of the placebo beside another re-draw"),
        ("placebo_latents", "With all that: the 4 placebo latents that correlate most.",
         "the value of the placebo beside another re-draw"),
    )
)  # fmt: skip

_OF_SCORE = "`latents.origin.decoy_scores`."

SCORES: tuple[Term, ...] = (
    Term("stable_unexplained",
         "the lesser of 1 - R2 of the ladder up to the embeddings of a window, and the correlation with "
         "the best partner in the SAE of another seed: not explained by tokens, and yet no accident",
         "1", "the decoys' scores", _OF_SCORE, "partners"),
    Term("attribute_r2",
         "share of variance removed by the best attribute of the token (its spelling, its labels)",
         _R2, "the decoys' scores", _OF_SCORE, "partners"),
    Term("induction_d",
         "how much more it fires on repeated than on fresh random blocks, in standard deviations",
         "standard deviations", "the decoys' scores; 0 where nothing is copied",
         f"{_OF_SCORE} Repeated blocks: Olsson et al. 2022 (arXiv 2209.11895).", "partners"),
    Term("output_lift",
         "how much more often its promoted tokens come next than after the same current token",
         "ratio", "the decoys' scores; 1 where nothing is promoted", _OF_SCORE, "partners"),
    Term("token_entropy_bits",
         "token entropy in bits: how many different tokens it is active on",
         "bits", "the decoys' scores", _OF_SCORE, "partners"),
)  # fmt: skip

_OF_BASELINE = (
    "bits/token",
    "dense PCA, which no code is longer than: one may have no atoms",
)

BASELINES: tuple[Term, ...] = tuple(
    Term(name, definition, *_OF_BASELINE, source, "structure")
    for name, definition, source in (
        ("kmeans", "Centroids as directions; its own code is the nearest centroid, the code compared here "
         "uses as many as every other baseline.",
         "MiniBatchKMeans of scikit-learn, random start, at most 8 passes."),
        ("random", "Uniform unit directions: what many directions explain without having been learned.",
         "Korznikov et al. 2026 (arXiv 2602.14111), iso; there an encoder is trained for them, here they "
         "are pursued."),
        ("covariance", "Directions of Gaussian draws with the activations' covariance: what is learned is "
         "the second moments alone.",
         "Korznikov et al. 2026 (arXiv 2602.14111), cov; there an encoder is trained for them, here they "
         "are pursued."),
        ("neurons", "The coordinate axes: no direction is sought.",
         "The usual baseline of Bricken et al. 2023, here coded like every other dictionary."),
        ("embeddings", "Embeddings of the most frequent tokens of the text to fit on, as directions.",
         "Ours: what the input's own directions explain. The rows are the arm's own W_E."),
        ("ica", "Columns of FastICA's mixing matrix: directions whose sources are as independent, that is "
         "as non-Gaussian, as can be.",
         "Hyvarinen and Oja 2000, as in scikit-learn (parallel, logcosh); a fixed number of iterations on "
         "a sample."),
        ("nmf", "Non-negative matrix factorization of [relu(x), relu(-x)]; a part stands for the direction "
         "that its two halves make together.",
         "Lee and Seung 1999, coordinate descent as in scikit-learn. NMF needs input without signs: the "
         "doubling is ours, and so is coding with the parts by pursuit."),
        ("pca", "Eigenvectors of the covariance; a token is written with the components that are largest "
         "for it.",
         "The usual PCA; the choice of components by token, and not once for all, is ours and favors PCA "
         "in variance while it pays for indices."),
        ("pca_dense", "No sparse code: every principal component is quantized with one step and coded, "
         "which spends no bits on components below the step.",
         "Transform coding (Goyal 2001), which is reverse water-filling but for the loss of a scalar "
         "quantizer, about a quarter bit per coded component."),
        ("token_table", "The token's id is sent, under frequencies in the text to fit on, and what the "
         "mean activation of the id leaves is coded in its principal components.",
         "Ours: what a lookup table of the current token is worth, in the unit of the others."),
    )
)  # fmt: skip

CONTROLS: tuple[Term, ...] = tuple(
    Term(name, definition, source=f"docs/reference/{page}.md.")
    for name, definition, page in (
        ("trained", "No control: the reference model as it is.", "controls"),
        ("ablate_attention", "Attention of every layer writes zero, on top of the trained model or of "
         "another control.", "controls"),
        ("redraw", "Each parameter's entries replaced by Gaussian ones of the tensor's own mean and "
         "variance; groups of tensors can be kept.", "controls"),
        ("redraw_calibrated", "A re-draw of the weights in which each block adds so much that the current "
         "token explains as much of the activations as in the trained model.", "controls"),
        ("cascade", "The last decoder layers, or one of them, re-drawn.", "controls"),
        ("init", "The model as its class makes it from its config, before any training.", "controls"),
        ("noise_embeddings", "A random vector in the place of each token's embedding; every tensor stays "
         "as trained.", "controls"),
        ("permute", "Each tensor's own entries in a random order.", "controls"),
        ("redraw_embeddings", "Each row of W_E replaced by one of its own norm in a random direction.",
         "controls"),
        ("revision", "The tensors of another checkpoint, in the reference's architecture.", "controls"),
        ("spectrum", "Singular values kept, singular vectors drawn anew.", "controls"),
        ("gaussian", "Activations replaced by Gaussian draws with the mean and covariance of the arm's "
         "own.", "controls-data"),
        ("surrogate", "Activations replaced by the mean of their token, or of the pair of it and the token "
         "before, and a Gaussian draw: mean and covariance are the arm's own.", "controls-data"),
        ("markov", "Text drawn from a chain of token pairs.", "controls-data"),
        ("shuffle_tokens", "Tokens permuted within each document.", "controls-data"),
        ("unigram", "Every token drawn independently, by how often it occurs.", "controls-data"),
        ("frozen_decoder", "Decoder rows stay at random directions; all else is trained.",
         "controls-dictionary"),
        ("frozen_encoder", "Encoder rows stay at random directions; all else is trained.",
         "controls-dictionary"),
        ("pca", "Latents are the principal directions of the activations, plus and minus.",
         "controls-dictionary"),
        ("retrained", "The trained SAE, by the recipe of one that is given: it controls nothing.",
         "controls-dictionary"),
        ("soft_frozen", "Each decoder row stays within an angle of its random start.",
         "controls-dictionary"),
        ("untrained", "The SAE before its training, times one scale.", "controls-dictionary"),
    )
)  # fmt: skip

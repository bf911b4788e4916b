"""What kind of latent it is, whether a placebo has it too, and what is left over.

One file per statistic; each is a function of a `Reading` and of `Folds`, and none of them holds an
array of token x latent: work grows with active entries.
"""

"""What kind of latent each latent is, whether a placebo has it too, and what of it is left unexplained.

There is one file for each statistic. A statistic is a function of `Encoded` and `Folds`, and none of them
holds an array of token x latent, so that the work grows with the number of active entries.
"""

"""How much of a latent is explained by predictors of increasing complexity."""

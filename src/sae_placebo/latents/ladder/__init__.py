"""How much of a latent each ever less simple predictor explains."""

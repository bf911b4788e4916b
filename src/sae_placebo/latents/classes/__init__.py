"""What kind of latent it is: the decision list, its thresholds, and how far it can be trusted."""

"""Statistics of each latent, one statistic in each file."""

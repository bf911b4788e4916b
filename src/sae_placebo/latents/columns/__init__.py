"""What is said of each latent, one statistic a file."""

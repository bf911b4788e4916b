"""Where a latent comes from: verdicts, and decoys to compare scores with."""

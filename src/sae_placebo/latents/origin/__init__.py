"""Where a latent comes from: verdicts, and the decoys that they are held against."""

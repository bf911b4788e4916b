"""What the model does with a latent: use, and the circuits that write and read it."""

"""Does the model use what a latent stands for: edits of activations, and what becomes of predictions."""

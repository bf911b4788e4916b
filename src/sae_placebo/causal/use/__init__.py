"""Whether the model uses what a latent stands for: activations are edited, and predictions compared."""

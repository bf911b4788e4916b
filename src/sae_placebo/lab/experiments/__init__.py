"""Experiments on activations whose features are known."""

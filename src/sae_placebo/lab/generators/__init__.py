"""Activations whose features are known: one file a generator."""

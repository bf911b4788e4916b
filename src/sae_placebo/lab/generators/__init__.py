"""Generators of activations whose features are known: one generator a file."""

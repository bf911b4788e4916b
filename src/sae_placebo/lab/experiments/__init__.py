"""Experiments train SAEs on activations whose features are known, and say what they learned."""

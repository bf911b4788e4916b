"""Placebo-controlled trials for sparse autoencoders."""

"""Scores of what an SAE has found of known features, with what chance and knowing the truth reach."""

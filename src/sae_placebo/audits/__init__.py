"""Where an SAE misleads: audits, each with its null."""

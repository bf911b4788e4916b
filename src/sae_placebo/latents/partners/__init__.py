"""Whether another SAE has the same latent, by activation and by direction."""

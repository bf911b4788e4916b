"""Short descriptions by rule of what latents fire on."""

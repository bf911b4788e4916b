"""Known features are planted into real activations, to see which of them an SAE recovers."""

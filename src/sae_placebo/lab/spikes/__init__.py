"""Features of our own, planted into real activations, and what comes back of them."""

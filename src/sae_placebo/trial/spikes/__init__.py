"""Features of our own are planted into a finished trial's activations, to see what its SAE finds of them."""

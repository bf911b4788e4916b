"""Controls of the model: what is done to the weights. One file a control."""

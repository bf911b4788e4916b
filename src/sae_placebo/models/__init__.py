"""Any causal language model: loaded, read at hookpoints, and described."""

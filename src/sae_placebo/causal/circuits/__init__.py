"""Which parts of a model write what a direction stands for, and which read it."""

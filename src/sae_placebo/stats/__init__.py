"""Intervals, the bootstrap, the AUROC, many effects at once, designs, and what chance gives."""

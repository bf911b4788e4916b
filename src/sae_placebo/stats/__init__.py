"""Intervals, many effects at once, designs, and what chance gives."""

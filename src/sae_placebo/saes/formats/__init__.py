"""Formats of other libraries, read and written."""

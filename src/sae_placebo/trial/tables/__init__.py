"""The tables that a trial joins from what its stages made."""

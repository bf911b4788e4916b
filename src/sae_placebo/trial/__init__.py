"""The experiment: `run` is the file to read first."""

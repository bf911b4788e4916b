"""One file a stage: what it reads, what it makes, and in what order."""

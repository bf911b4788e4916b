"""What is found of known features, beside what chance and what knowing the truth reach."""

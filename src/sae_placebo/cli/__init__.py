"""The command line: verbs over the public API, and no logic of their own."""

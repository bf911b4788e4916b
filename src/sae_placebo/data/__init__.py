"""Text as rows of tokens, what is known of the tokens, and how far that can be read off tokens alone."""

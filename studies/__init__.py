"""Long experiments: each a command whose results are kept beside it as a small table."""

"""Models that other programs trained and saved, each made into one that TransformerLens can hook. One file for each format."""

"""What a recurrent network is laid beside: a transformer and an MLP that TransformerLens can hook."""

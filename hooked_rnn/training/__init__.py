"""How a model is made: the configuration of a run, its optimizer, its loop, its directory."""

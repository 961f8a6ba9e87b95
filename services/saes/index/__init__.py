"""Making feature indexes: a corpus through the model and its SAEs once, and one SQLite file for each of them."""

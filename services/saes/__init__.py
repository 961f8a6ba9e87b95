"""Sparse autoencoders: reading them from disk, encoding with them, and the recipe that trains our own."""

"""Results as pictures, drawn with matplotlib's objects alone: no pyplot, no torch."""

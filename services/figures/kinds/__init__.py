"""From a result to its picture, one file per kind."""

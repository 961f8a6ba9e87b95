"""How the shipped induction model was made."""

"""Faults to survive, as scripted drills on real processes: `python -m tests.chaos [drill …] [--short]`."""

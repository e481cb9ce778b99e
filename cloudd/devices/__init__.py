"""The fleet: who may join, which devices there are, what they should run and what they say they run."""

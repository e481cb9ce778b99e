"""Keeps labelled and unlabelled pictures of the plant for learning: sealed, bounded, and never sent by themselves."""

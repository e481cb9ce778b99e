"""Labelled pictures: what a dataset version is, how it is split, and the file formats others keep theirs in."""

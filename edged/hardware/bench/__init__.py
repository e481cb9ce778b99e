"""The child that loads a model in one way, proves it and measures it; the only room here that imports numpy."""

"""Things to try the product with: a simulated inspection line, the models trained for it, and the demo."""

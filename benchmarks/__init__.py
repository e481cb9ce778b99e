"""Benchmarks: each module is run with `python -m benchmarks.NAME [--quick] [--json FILE]` and prints a table."""

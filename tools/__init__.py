"""Benchmarks, fits and comparisons behind the figures in ``results/``; not part of what is installed."""

"""Benchmarks: what a model is asked, how its answers are graded, what scores mean."""

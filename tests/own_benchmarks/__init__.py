"""Benchmarks of a user, as docs/evaluation.md shows."""

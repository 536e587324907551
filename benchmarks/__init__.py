"""Benchmarks, run by hand: ``python -m benchmarks.packing``. See docs/benchmarks.md."""

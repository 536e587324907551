"""One small module per benchmark; ``BENCHMARK`` in each is what it says."""

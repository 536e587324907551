"""A world of drawings: questions, a mixture to learn from, a tiny model."""

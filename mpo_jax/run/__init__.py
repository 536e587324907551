"""Assemble a run from its config: set-up, stages, evaluation, training."""

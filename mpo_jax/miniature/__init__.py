"""The paper's claim at the size of two processor cores: seeds, methods, intervals."""

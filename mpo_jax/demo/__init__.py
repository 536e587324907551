"""The quickstart's own world: drawn images, a small tokenizer, a tiny model."""

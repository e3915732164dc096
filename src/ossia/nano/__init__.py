"""Data only: configuration, weights and tokenizer of the embedded model."""

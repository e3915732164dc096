"""Checkpoints, configuration and the forward pass."""

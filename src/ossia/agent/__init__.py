"""The turn: render, generate, parse, events."""

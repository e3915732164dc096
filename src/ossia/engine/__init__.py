"""Token ids in, token ids out, for many requests at once. The engine never sees text."""

"""A user's own figures: speed of one model on this machine, beside the machine's limits."""

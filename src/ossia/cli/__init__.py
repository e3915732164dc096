"""The command line: one module per command; the only place where kernels, model, engine and agent are put together."""

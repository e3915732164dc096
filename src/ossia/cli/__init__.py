"""The command line: one module per command, over the same API that programs use."""

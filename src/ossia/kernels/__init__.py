"""The arithmetic: one protocol (`interface`), several implementations, the MXFP4 number format."""

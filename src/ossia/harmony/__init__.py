"""Harmony, the format that gpt-oss speaks: conversations to token ids and back.

Text and ids only, no arrays.
"""

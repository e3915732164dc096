"""Writing to the terminal: what a model says is shown as text and never drives the terminal."""

from __future__ import annotations

import os
import sys

# C0 and C1 control characters except tab and newline: an escape sequence in a model's output could
# otherwise recolour, retitle or overwrite the screen. They appear as their Unicode pictures.
_UNSAFE = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"}
_UNSAFE |= dict.fromkeys(range(127, 160), "␡")

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def is_terminal() -> bool:
    return sys.stdout.isatty()


def printable(text: str) -> str:
    """The text with control characters made visible, tab and newline kept."""
    return text.translate(_UNSAFE)


def write(text: str) -> None:
    """Show text at once: made safe on a terminal, as it is into a pipe or file."""
    sys.stdout.write(printable(text) if is_terminal() else text)
    sys.stdout.flush()


def read_all() -> str:
    """Standard input to its end. UTF-8 whatever the locale; raises UnicodeDecodeError."""
    return sys.stdin.buffer.read().decode("utf-8")


def begin_style(*, dim: bool) -> None:
    """Dim what follows, on terminals that have styles (NO_COLOR and TERM=dumb are respected)."""
    if dim and _has_styles():
        sys.stdout.write(_DIM)


def end_style() -> None:
    if _has_styles():
        sys.stdout.write(_PLAIN)
        sys.stdout.flush()


def _has_styles() -> bool:
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

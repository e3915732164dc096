"""`ossia train check`: a data file as training will see it, token by token, and a summary of it.

In a terminal learnt tokens are green and tokens alternate in underline; in a pipe learnt tokens
stand in brackets and tokens are parted by `·`. Each message begins a line, though the data has no
line break there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ossia.train.check import CheckedExample, Piece, Summary

_LEARNT, _CONTEXT, _CONTROL, _LEARNT_CONTROL = "green", "dim", "bold blue", "bold magenta"
_START = "<|start|>"
_BAR = 40  # characters of the longest bar of the histogram


def check(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="`nano`, a hub name, or a folder: for its tokenizer."),
    ],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="JSON Lines, one conversation a line.")
    ],
    count: Annotated[
        int, typer.Option("--count", min=0, help="Conversations to show, from the first.")
    ] = 3,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines: those conversations, then the summary.")
    ] = False,
) -> None:
    """Show a data file as training will see it: rendered, tokenised, masked, and summed up.

    Exit code 1 when a conversation cannot be trained on.
    """
    from ossia.train.check import DataCheck, load_vocabulary, pieces

    vocabulary = load_vocabulary(model)
    tokenizer = vocabulary.tokenizer
    found = DataCheck(data, tokenizer, context=vocabulary.context, identity=vocabulary.identity)
    console = None if as_json else _console()
    for shown, checked in enumerate(found):
        if shown >= count:
            continue
        if console is None:
            print(json.dumps(checked.to_json(tokenizer)), flush=True)
        else:
            _show_example(console, checked, pieces(tokenizer, checked.example))
    if console is None:
        print(json.dumps({"summary": found.summary.to_json()}))
    else:
        _show_summary(console, found.summary, vocabulary.context)
    if found.summary.problem_count:
        raise typer.Exit(1)


def _console() -> Console:
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 100  # a pipe has no width to fit into
    return Console(width=wide, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _show_example(console: Console, checked: CheckedExample, tokens: Iterable[Piece]) -> None:
    share = checked.learnt / checked.tokens
    console.print(
        f"line {checked.line}: {checked.tokens:,} tokens, {checked.learnt:,} learnt ({share:.0%})",
        style="bold",
    )
    if checked.problem is not None:
        console.print(f"problem: {checked.problem}", style="red")
    has_colours = console.color_system is not None and not console.no_color
    console.print(coloured(tokens) if has_colours else bracketed(tokens))
    console.print()


def coloured(tokens: Iterable[Piece]) -> Text:
    """Tokens by colour: learnt, context, control; every other one underlined."""
    from rich.text import Text

    shown = Text()
    for i, piece in enumerate(tokens):
        if piece.is_control:
            style = _LEARNT_CONTROL if piece.weight else _CONTROL
        else:
            style = _LEARNT if piece.weight else _CONTEXT
        if i and piece.is_control and piece.text == _START:
            shown.append("\n")
        shown.append(_visible(piece.text), f"{style} underline" if i % 2 else style)
    return shown


def bracketed(tokens: Iterable[Piece]) -> str:
    """Tokens parted by `·`, runs of learnt ones in brackets."""
    shown: list[str] = []
    before = 0
    for piece in tokens:
        if before and not piece.weight:
            shown.append("]")
        if shown and piece.is_control and piece.text == _START:
            shown.append("\n")
        elif shown:
            shown.append("·")
        if piece.weight and not before:
            shown.append("[")
        shown.append(_visible(piece.text))
        before = piece.weight
    return "".join(shown) + ("]" if before else "")


def _visible(text: str) -> str:
    return printable(text).replace("\n", "↵\n")


def _show_summary(console: Console, summary: Summary, context: int | None) -> None:
    rows = [
        ("conversations", f"{summary.conversations:,}"),
        ("tokens", f"{summary.tokens:,}"),
        ("learnt", f"{summary.learnt:,} ({summary.learnt_share:.1%})"),
    ]
    if summary.longest_line is not None:
        rows.append(("longest", f"{summary.longest:,} tokens, line {summary.longest_line}"))
    if context is not None:
        rows.append(("over context", f"{summary.too_long:,} longer than {context:,} tokens"))
    rows += [
        ("messages", _counts(summary.roles)),
        ("efforts", _counts(summary.efforts)),
        ("problems", f"{summary.problem_count:,}"),
    ]
    for name, value in rows:
        console.print(f"{name:<14}{value}")
    if summary.lengths:
        console.print("\ntokens         conversations")
        most, width = max(summary.lengths.values()), len(f"{2 * max(summary.lengths) - 1:,}")
        begin = min(summary.lengths)
        while begin <= max(summary.lengths):
            number = summary.lengths[begin]
            bar = "█" * -(-number * _BAR // most)
            span = f"{begin:>{width},}–{2 * begin - 1:>{width},}"
            console.print(f"{span:<14} {number:>6,} {bar}".rstrip())
            begin *= 2
    for problem in summary.problems:
        console.print(f"- {printable(problem)}", style="red")
    if summary.problem_count > len(summary.problems):
        console.print(f"- and {summary.problem_count - len(summary.problems):,} more", style="red")


def _counts(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {number:,}" for name, number in ordered) or "none"

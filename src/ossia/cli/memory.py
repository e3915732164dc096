"""`--memory`: the plan of a model's memory, printed before anything is loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from ossia.cli import options

if TYPE_CHECKING:
    from ossia.loading import OpenedModel


def show_memory(opened: OpenedModel, *, as_json: bool) -> None:
    """Print the plan. Exit code 1 where it does not fit."""
    plan, machine = opened.memory, opened.machine
    if as_json:
        report = plan.to_json() | {
            "fits": not opened.refusal,
            "usable": machine.usable,
            "available": machine.available,
        }
        print(json.dumps(report))
    else:
        mark = "about " if plan.is_estimate else ""
        for item in plan.items:
            kind = "  (the file's own pages)" if item.mapped else ""
            print(f"{options.size(item.bytes):>10}  {item.what}{kind}")
        print(
            f"{options.size(plan.total):>10}  {mark}in all at its fullest, of "
            f"{options.size(machine.usable)} that this process may use "
            f"({options.size(machine.available)} free now)"
        )
        for note in (opened.refusal, *options.memory_notes(opened)):
            if note:
                print(f"\n{note}")
    if opened.refusal:
        raise typer.Exit(1)

"""`ossia pull`: fetch a model from the hub into the local cache, with a progress bar."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The model's name, such as openai/gpt-oss-20b.")
    ],
    revision: Annotated[
        str, typer.Option("--revision", help="A branch, a tag or a commit.")
    ] = "main",
) -> None:
    """Fetch a model: only the files needed, going on where an interrupted call stopped.

    Every file is held against the hash that the hub lists, and the checkpoint is checked as a
    whole. Prints the folder; --model takes the name.
    """
    from ossia.model import hub
    from ossia.model.checkpoint import open_checkpoint

    if sys.stderr.isatty():
        folder = _with_bar(name, revision)
    else:
        folder = hub.pull(name, revision=revision)
    open_checkpoint(folder)
    print(folder)


def _with_bar(name: str, revision: str):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from ossia.model import hub

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(name, total=None)
        return hub.pull(
            name,
            revision=revision,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )

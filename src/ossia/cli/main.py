"""The `ossia` command: mounts one module per command and turns errors into one sentence.

Modules of commands import nothing heavy at their top, so that `ossia --help` stays instant.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ossia import __version__
from ossia.cli import bench, chat, doctor, eval, generate, harmony, inspect, pull, train
from ossia.errors import OssiaError, UsageError

app = typer.Typer(
    name="ossia",
    help="gpt-oss on your own hardware: chat, generate, inspect, train. Offline by default.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ossia {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None: ...


app.command()(chat.chat)
app.command()(generate.generate)
app.command()(pull.pull)
app.command()(inspect.inspect)
app.command()(doctor.doctor)
app.command()(bench.bench)
app.command("eval")(eval.evaluate)
app.add_typer(harmony.app, name="harmony")
app.add_typer(train.app, name="train")


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of one invocation; every error has been printed as one sentence."""
    try:
        app(arguments)
        return 0
    except SystemExit as end:  # typer's way to return: done, wrong usage, interrupted
        return end.code if isinstance(end.code, int) else 1
    except (OssiaError, OSError, MemoryError) as error:
        if os.environ.get("OSSIA_DEBUG"):
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except UnicodeDecodeError as error:
        print(f"error: the input is not UTF-8 text: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("OSSIA_DEBUG"):
            raise
        print(
            f"error: ossia itself failed ({type(error).__name__}: {error}); this is a defect. "
            "Please report it with the trace that OSSIA_DEBUG=1 prints.",
            file=sys.stderr,
        )
        return 1


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "this machine ran out of memory; `ossia inspect MODEL` says how much a model needs."
    if isinstance(error, OSError) and not isinstance(error, OssiaError) and error.strerror:
        return f"{error.filename or 'input or output'}: {error.strerror.lower()}."
    return str(error)


if __name__ == "__main__":
    main()

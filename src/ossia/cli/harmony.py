"""`ossia harmony`: the codec by itself, so that anyone can hold it against any other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from ossia.errors import ConversationError, OssiaError

if TYPE_CHECKING:
    from ossia.harmony.tokenizer import Tokenizer

app = typer.Typer(
    name="harmony",
    help="Conversations to tokens, and tokens to messages.",
    no_args_is_help=True,
)

FileArgument = Annotated[
    str, typer.Argument(metavar="[FILE|-]", help="Where to read from; `-` is standard input.")
]
VocabOption = Annotated[
    Path | None,
    typer.Option(
        "--vocab",
        metavar="FOLDER|FILE.tiktoken",
        help="A model's folder, its tokenizer.json, or a file of o200k ranks. "
        "Default: the embedded model.",
    ),
]
JsonlOption = Annotated[
    bool,
    typer.Option("--jsonl", help="Read one JSON document a line, and print one line for each."),
]


@app.callback()
def _group() -> None:
    """Keeps the commands' names even while there is only one of them."""


@app.command()
def render(file: FileArgument = "-", vocab: VocabOption = None, jsonl: JsonlOption = False) -> None:
    """Turn conversations, in openai-harmony's JSON form, into tokens and text.

    Two keys beside "messages" choose what is rendered: "for" is "completion" (the default) or
    "training", which adds the weights of the loss; "drop" is "completed" (the default), "library"
    or "none" and says which reasoning of earlier turns is left out.

    Stops at the first line that cannot be rendered and names it.
    """
    tokenizer = load_vocabulary(vocab)
    if not jsonl:
        print_result(_render(tokenizer, read_document(file)))
        return
    print_for_each_line(file, lambda document: _render(tokenizer, document))


def _render(tokenizer: Tokenizer, document: Any) -> dict[str, Any]:
    from ossia.harmony.messages import Conversation
    from ossia.harmony.render import Drop, render_for_completion, render_for_training

    options: dict[str, Any] = {}
    if isinstance(document, dict):
        options = {key: document.pop(key) for key in ("for", "drop") if key in document}
    purpose = _one_of("for", options.get("for", "completion"), ["completion", "training"])
    drop = Drop(_one_of("drop", options.get("drop", "completed"), [str(d) for d in Drop]))
    conversation = Conversation.from_dict(document)
    if purpose == "completion":
        ids = render_for_completion(tokenizer, conversation, drop=drop).token_ids
        return {"tokens": ids, "text": tokenizer.decode(ids)}
    example = render_for_training(tokenizer, conversation, drop=drop)
    return {
        "tokens": example.token_ids,
        "text": tokenizer.decode(example.token_ids),
        "weights": example.loss_weights,
    }


def _one_of(key: str, value: Any, allowed: list[str]) -> str:
    if value not in allowed:
        raise ConversationError(
            f"{key}: expected one of {', '.join(allowed)}; got {json.dumps(value)}."
        )
    return value


# -- What the commands share ----------------------------------------------------------------------


def load_vocabulary(path: Path | None) -> Tokenizer:
    """The tokenizer that `--vocab` names, or the embedded model's."""
    from importlib import resources

    from ossia.harmony.tokenizer import Tokenizer

    if path is not None:
        return Tokenizer.load(path)
    with resources.as_file(resources.files("ossia.nano")) as folder:
        return Tokenizer.load(folder)


def _open(file: str) -> BinaryIO:
    return sys.stdin.buffer if file == "-" else Path(file).open("rb")


def read_document(file: str) -> Any:
    """The one JSON document in FILE or standard input."""
    from ossia.harmony.messages import parse_json

    with _open(file) as stream:
        return parse_json(stream.read())


def print_for_each_line(file: str, work: Callable[[Any], dict[str, Any]]) -> None:
    """One JSON line out for each in, as it comes. The first that fails ends it, named."""
    from ossia.harmony.messages import parse_json

    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                result = work(parse_json(line))
            except OssiaError as error:
                raise type(error)(f"line {number}: {error}") from error
            print(json.dumps(result), flush=True)


def print_result(result: dict[str, Any]) -> None:
    """For people: the text as it is, then every other value on a line of its own."""
    print(result.pop("text"))
    for key, value in result.items():
        print(f"{key}: {json.dumps(value)}")

"""`ossia harmony`: the codec by itself, so that anyone can hold it against any other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from ossia.errors import ConversationError, OssiaError, UsageError

if TYPE_CHECKING:
    from ossia.harmony.events import HarmonyEvent
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


def _one_of(key: str, value: Any, allowed: Sequence[str | None]) -> Any:
    if value not in allowed:
        raise ConversationError(
            f"{key}: expected one of {', '.join(a or 'null' for a in allowed)}; "
            f"got {json.dumps(value)}."
        )
    return value


@app.command()
def parse(
    file: FileArgument = "-",
    vocab: VocabOption = None,
    tools: Annotated[
        str,
        typer.Option(
            "--tools",
            metavar="NAME,NAME",
            help="What was offered: functions by their bare names, other tools by their full "
            "ones (browser.search, python).",
        ),
    ] = "",
    parallel: Annotated[
        bool, typer.Option("--parallel", help="A turn may hold several calls; else the first.")
    ] = False,
    jsonl: JsonlOption = False,
) -> None:
    """Turn the tokens of a completion into messages, whatever the model wrote.

    Reads {"tokens": [...], "role": "assistant"}. Tokens follow <|start|>assistant; with "role" null
    they begin with <|start|>, and may also be a whole conversation. An optional "finish_reason",
    "stop" or "length", says whether generation was cut short; an "id" is handed through.
    """
    tokenizer = load_vocabulary(vocab)
    offered = [name.strip() for name in tools.split(",")] if tools.strip() else []
    if not all(offered):
        raise UsageError(f"--tools: expected names parted by commas; got {tools!r}.")
    if jsonl:
        print_for_each_line(file, lambda d: _parse(tokenizer, d, offered, parallel)[1])
    else:
        _print_events(*_parse(tokenizer, read_document(file), offered, parallel))


def _parse(
    tokenizer: Tokenizer, document: Any, tools: list[str], parallel: bool
) -> tuple[list[HarmonyEvent], dict[str, Any]]:
    from ossia.harmony.messages import Role
    from ossia.harmony.parser import HarmonyParser
    from ossia.harmony.turn import assemble

    if not isinstance(document, dict) or "tokens" not in document:
        raise ConversationError('expected an object such as {"tokens": [...]}.')
    unknown = document.keys() - {"tokens", "role", "finish_reason", "id"}
    if unknown:
        raise ConversationError(
            f"unknown key {min(unknown)!r}; known: tokens, role, finish_reason."
        )
    tokens: Any = document["tokens"]
    if not isinstance(tokens, list):
        raise ConversationError("tokens: expected a list of token ids.")
    for index, token in enumerate(tokens):
        if type(token) is not int:
            raise ConversationError(
                f"tokens[{index}]: expected a token id, an integer; got {json.dumps(token)}."
            )
    role = _one_of("role", document.get("role", "assistant"), ["assistant", None])
    reason = _one_of("finish_reason", document.get("finish_reason"), ["stop", "length", None])
    parser = HarmonyParser(
        tokenizer, tools=tools, parallel=parallel, role=Role(role) if role else None
    )
    events = parser.feed(tokens)
    events += parser.finish(cut={"length": True, "stop": False}.get(reason))
    turn = assemble(events, cut=parser.cut, cut_for_sure=reason == "length").to_dict()
    return events, {"id": document["id"]} | turn if "id" in document else turn


def _print_events(events: list[HarmonyEvent], result: dict[str, Any]) -> None:
    """For people: an event a line with its tokens, then the turn."""
    from ossia.harmony.events import ContentDelta, MessageEnd, MessageStart, Repair

    for event in events:
        span = f"{event.span[0]}-{event.span[1]}"
        match event:
            case MessageStart():
                names = ("name", "channel", "recipient", "content_type")
                given = [f"{n}={v}" for n in names if (v := getattr(event, n)) is not None]
                print(f"{span:>9}  {event.kind.value}: {' '.join([event.role.value, *given])}")
            case ContentDelta():
                print(f"{span:>9}    {json.dumps(event.text, ensure_ascii=False)}")
            case MessageEnd():
                print(f"{span:>9}    ({event.stop.value})")
            case Repair():
                rule = event.rule.value + (", dropped" if event.dropped else "")
                print(f"{span:>9}    {rule}: {event.text}")
    print(json.dumps(result["turn"], ensure_ascii=False, indent=2))


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

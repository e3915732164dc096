"""`ossia generate`: raw completion, tokens in and tokens out, with no conversation around it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli import options, terminal
from ossia.cli.memory import show_memory
from ossia.errors import EngineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ossia.harmony.grammar import OutputFormat
    from ossia.llm import CompletionChunk


PromptOption = Annotated[
    str | None,
    typer.Option("--prompt", "-p", help="The text to continue; `-` reads standard input."),
]
TokensOption = Annotated[
    str | None,
    typer.Option("--tokens", help="Token ids in place of text: `1,2,3` or a JSON list."),
]
LiteralOption = Annotated[
    bool,
    typer.Option("--literal", help="Read <|start|> and its like in the prompt as mere text."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON object: tokens, text, why it ended.")
]
LogprobsOption = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        min=0,
        max=20,
        help="With --json: log-probability of each token and this many alternatives.",
    ),
]
JsonSchemaOption = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="The text is JSON of this schema."),
]
RegexOption = Annotated[
    str | None, typer.Option("--regex", help="The whole text matches this expression.")
]
LarkOption = Annotated[
    Path | None,
    typer.Option("--lark", metavar="FILE", help="The text follows this Lark grammar."),
]


def generate(
    prompt: PromptOption = None,
    tokens: TokensOption = None,
    literal: LiteralOption = False,
    model: options.ModelOption = "nano",
    as_json: JsonOption = False,
    max_tokens: options.MaxTokensOption = None,
    temperature: options.TemperatureOption = None,
    top_p: options.TopPOption = None,
    top_k: options.TopKOption = None,
    min_p: options.MinPOption = None,
    seed: options.SeedOption = None,
    stop: options.StopOption = None,
    logprobs: LogprobsOption = None,
    json_schema: JsonSchemaOption = None,
    regex: RegexOption = None,
    lark: LarkOption = None,
    vocab: options.VocabOption = None,
    kernels: options.KernelsOption = "auto",
    threads: options.ThreadsOption = None,
    exact: options.ExactOption = False,
    dense_dtype: options.DenseDtypeOption = None,
    instruction_set: options.InstructionSetOption = None,
    context: options.ContextOption = None,
    memory: options.MemoryOption = False,
    allow_slow: options.AllowSlowOption = False,
    expert_memory: options.ExpertMemoryOption = None,
    no_mmap: options.NoMmapOption = False,
) -> None:
    """Continue a prompt, raw: control tokens in and out, nothing added.

    The tokens after `ossia harmony render`'s text are those that `ossia chat` gets.
    """
    from dataclasses import replace

    chosen = options.ModelOptions(
        model=model,
        kernels=kernels,
        threads=threads,
        exact=exact,
        dense_dtype=dense_dtype,
        instruction_set=instruction_set,
        context=context,
        vocab=vocab,
        allow_slow=allow_slow,
        expert_memory=expert_memory,
        no_mmap=no_mmap,
    )
    if memory:
        show_memory(chosen.open(needs_tokenizer=False), as_json=as_json)
        return
    if (prompt is None) == (tokens is None):
        raise UsageError("Give the prompt either as --prompt TEXT or as --tokens IDS, one of them.")
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs prints numbers for programs to read; add --json.")
    given = _parse_tokens(tokens) if tokens is not None else _read_prompt(prompt or "")
    response_format = _response_format(json_schema, regex, lark)
    with options.load_model(chosen.open(), quiet=as_json) as llm:
        sampling = options.sampling_of(
            llm,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            seed=seed,
        )
        if logprobs is not None:
            sampling = replace(sampling, logprobs=True, top_logprobs=logprobs)
        stream = llm.stream_generate(
            given,
            response_format=response_format,
            sampling=sampling,
            stop=stop or (),
            control_tokens=not literal,
        )
        _show(stream, as_json=as_json)


def _show(stream: Iterator[CompletionChunk], *, as_json: bool) -> None:
    """The text as it comes, or the whole as JSON. Raises EngineError when the engine failed."""
    completion = None
    for chunk in stream:
        if not as_json:
            terminal.write(chunk.text)
        for line in chunk.diagnostics:
            print(f"note: {line}", file=sys.stderr)
        completion = chunk.completion
    assert completion is not None  # every stream ends with the whole completion
    if as_json:
        print(json.dumps(completion.to_json(), ensure_ascii=False))
    else:
        terminal.write("\n")
    if completion.finish_reason.failed:  # what was generated stands above
        raise EngineError("; ".join(completion.diagnostics) or "The engine failed.")


def _response_format(
    json_schema: Path | None, regex: str | None, lark: Path | None
) -> OutputFormat | None:
    from ossia.harmony.grammar import JsonSchemaFormat, LarkFormat, RegexFormat
    from ossia.harmony.messages import parse_json

    if sum(given is not None for given in (json_schema, regex, lark)) > 1:
        raise UsageError("Give one of --json-schema, --regex and --lark.")
    try:
        if json_schema is not None:
            return JsonSchemaFormat(parse_json(json_schema.read_bytes()))
        if lark is not None:
            return LarkFormat(lark.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read {json_schema or lark}: {error}.") from None
    return None if regex is None else RegexFormat(regex)


def _read_prompt(prompt: str) -> str:
    return terminal.read_all() if prompt == "-" else prompt


def _parse_tokens(text: str) -> list[int]:
    try:
        return [int(word) for word in text.strip().removeprefix("[").removesuffix("]").split(",")]
    except ValueError:
        raise UsageError(
            f"--tokens takes integers separated by commas, such as 1,2,3; got {text[:40]!r}."
        ) from None

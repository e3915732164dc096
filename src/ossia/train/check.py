"""A data file as training will see it: every conversation rendered, tokenised and masked, and a
summary of the whole file.

Unlike training, it does not stop at the first bad line: all problems are collected, each a sentence
that names the line and the mend.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossia.errors import ConfigError, TokenizerError, TrainingError
from ossia.harmony.messages import Conversation, Message, Role, SystemContent
from ossia.harmony.render import TrainingExample
from ossia.harmony.tokenizer import Tokenizer
from ossia.llm import ModelCard
from ossia.loading import load_tokenizer
from ossia.model.config import ModelConfig
from ossia.model.hub import resolve_model
from ossia.model.json_fields import read_object
from ossia.train.dataset import (
    DEFAULT_IDENTITY,
    Unfit,
    read_conversation,
    read_lines,
    render_line,
    why_unfit,
)

PROBLEMS_KEPT = 20
"""Sentences that a summary keeps; all problems are counted."""


@dataclass(frozen=True)
class ModelVocabulary:
    """What checking data needs of a model: its weights are not read."""

    tokenizer: Tokenizer
    identity: str | None
    """The first line of its system message."""
    context: int | None
    """Tokens that it takes; None where there is no config.json, as in a folder of a tokenizer."""


def load_vocabulary(model: str | Path) -> ModelVocabulary:
    """Tokenizer, identity and context of `nano`, a fetched model on the hub, or a folder.

    Raises ModelNotFoundError, TokenizerError (no vocabulary, one that lacks a control token, or one
    of another model), ConfigError, CheckpointError.
    """
    folder = resolve_model(model)
    if not (folder / "config.json").exists() and (folder / "original" / "config.json").exists():
        folder = folder / "original"
    tokenizer = load_tokenizer(folder, None)
    path, context = folder / "config.json", None
    if path.exists():
        config = ModelConfig.from_json(read_object(path, ConfigError), str(path))
        control = tokenizer.control
        largest = max(*control.stop_ids, control.start, control.message, control.channel)
        if largest >= config.vocab_size:
            raise TokenizerError(
                f"{tokenizer.name}: a control token has the id {largest}, but by {path} the model "
                f"embeds only ids below {config.vocab_size}; use the vocabulary of this model."
            )
        context = config.max_position_embeddings
    return ModelVocabulary(tokenizer, ModelCard.read(folder).model_identity, context)


# -- Examples and their summary -------------------------------------------------------------------


@dataclass(frozen=True)
class CheckedExample:
    """One conversation as training will see it."""

    line: int
    example: TrainingExample
    problem: str | None
    """Why it cannot be trained on, and the mend."""

    @property
    def tokens(self) -> int:
        return len(self.example.token_ids)

    @property
    def learnt(self) -> int:
        """Tokens on which the loss falls."""
        return sum(weight > 0 for weight in self.example.loss_weights)

    def to_json(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "line": self.line,
            "tokens": list(self.example.token_ids),
            "weights": list(self.example.loss_weights),
            "text": tokenizer.decode(self.example.token_ids),
            "learnt": self.learnt,
            "problem": self.problem,
        }


@dataclass
class Summary:
    """The whole file; its owner is the `DataCheck` that reads it."""

    conversations: int = 0
    """Those that could be rendered."""
    tokens: int = 0
    learnt: int = 0
    longest: int = 0
    longest_line: int | None = None
    too_long: int = 0
    roles: Counter[str] = field(default_factory=Counter)
    """Messages by role, those of the assistant by channel, its calls apart."""
    efforts: Counter[str] = field(default_factory=Counter)
    """Conversations by reasoning effort; `none` where the system message names none."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Conversations by the largest power of two that their tokens reach."""
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)
    """The first `PROBLEMS_KEPT`."""

    def add(self, conversation: Conversation, checked: CheckedExample) -> None:
        self.conversations += 1
        self.tokens += checked.tokens
        self.learnt += checked.learnt
        if checked.tokens > self.longest:
            self.longest, self.longest_line = checked.tokens, checked.line
        self.roles.update(map(_speaker, conversation.messages))
        self.efforts[_effort(conversation)] += 1
        self.lengths[1 << (checked.tokens.bit_length() - 1)] += 1

    def add_problem(self, sentence: str) -> None:
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(sentence)

    @property
    def learnt_share(self) -> float:
        """Of all tokens."""
        return self.learnt / self.tokens if self.tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; a length's key is the lower end of its range."""
        return {
            "conversations": self.conversations,
            "tokens": self.tokens,
            "learnt": self.learnt,
            "learnt_share": round(self.learnt_share, 6),
            "longest": self.longest,
            "longest_line": self.longest_line,
            "too_long": self.too_long,
            "roles": dict(self.roles),
            "efforts": dict(self.efforts),
            "lengths": {str(begin): self.lengths[begin] for begin in sorted(self.lengths)},
            "problem_count": self.problem_count,
            "problems": self.problems,
        }


class DataCheck(Iterator[CheckedExample]):
    """The conversations of a file, one at a time; `summary` covers those seen so far.

    `context`: tokens beyond which a conversation is too long. Raises TrainingError for a file that
    cannot be read; lines that cannot are problems of the summary.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer: Tokenizer,
        *,
        context: int | None,
        identity: str | None = DEFAULT_IDENTITY,
    ) -> None:
        self.summary = Summary()
        self._tokenizer, self._context, self._identity = tokenizer, context, identity
        self._examples = self._check(path)

    def __next__(self) -> CheckedExample:
        return next(self._examples)

    def _check(self, path: str | Path) -> Iterator[CheckedExample]:
        summary = self.summary
        for line in read_lines(path):
            try:
                conversation = read_conversation(line, identity=self._identity)
                example = render_line(line, conversation, self._tokenizer)
            except TrainingError as error:
                summary.add_problem(str(error))
                continue
            unfit = why_unfit(conversation, example, self._context)
            problem = None if unfit is None else unfit[1]
            if unfit is not None:
                summary.add_problem(f"{line.place}: {unfit[1]}")
                summary.too_long += unfit[0] is Unfit.TOO_LONG
            checked = CheckedExample(line.number, example, problem)
            summary.add(conversation, checked)
            yield checked


def _speaker(message: Message) -> str:
    if message.role != Role.ASSISTANT:
        return message.role.value
    if message.recipient not in (None, "all"):
        return "assistant call"
    return f"assistant {message.channel}" if message.channel else "assistant"


def _effort(conversation: Conversation) -> str:
    for message in conversation.messages:
        for part in message.content:
            if isinstance(part, SystemContent) and part.reasoning_effort is not None:
                return part.reasoning_effort.value
    return "none"


# -- What is shown --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A token as text; several where a character's bytes are spread over them."""

    text: str
    tokens: int
    weight: int
    is_control: bool


def pieces(tokenizer: Tokenizer, example: TrainingExample) -> Iterator[Piece]:
    """An example token by token; the texts joined are `tokenizer.decode` of it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    waiting = 0
    for token_id, weight in zip(example.token_ids, example.loss_weights, strict=True):
        waiting += 1
        # Rendering encodes whole texts between control tokens, so no bytes wait at one of those.
        text = decoder.decode(tokenizer.token_bytes(token_id))
        if text:
            yield Piece(text, waiting, weight, tokenizer.is_control(token_id))
            waiting = 0

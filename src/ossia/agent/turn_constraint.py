"""What a turn may be → what the engine can follow: one `TokenConstraint` per generation.

Joins Harmony's grammars, which are text, with the engine's compiler, which knows tokens only.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

from ossia.agent.turn import TokenSource, offered_tools
from ossia.engine.constraint import GrammarCompiler, TokenConstraint, TokenTable
from ossia.engine.request import Request, TokenOutput
from ossia.errors import RequestError
from ossia.harmony.grammar import (
    Grammar,
    Opening,
    OutputFormat,
    TurnOptions,
    output_grammar,
    turn_grammar,
)
from ossia.harmony.messages import Conversation, Role
from ossia.harmony.tokenizer import Tokenizer


class TurnConstraints:
    """The grammars of one model; make it once and share it between threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: the rows of the model's unembedding, which need not be the tokenizer's."""
        self._tokenizer = tokenizer
        self._compiler = GrammarCompiler(lambda: token_table(tokenizer, vocab_size))

    def for_turn(
        self, conversation: Conversation, options: TurnOptions, written: Sequence[int] = ()
    ) -> TokenConstraint:
        """What the assistant's next generation may be. `options.tools` are those that the
        conversation declares, whatever the options say. `written`: what the prompt already holds
        of the message that the grammar begins with.

        Raises RequestError for options that contradict each other and for what cannot be enforced,
        naming the tool and the keyword. Each generation takes a constraint of its own.
        """
        grammar = turn_grammar(replace(options, tools=offered_tools(conversation)))
        return self._compiled(grammar, written)

    def constrained(
        self, engine: TokenSource, conversation: Conversation, options: TurnOptions
    ) -> TokenSource:
        """The engine with each generation of this turn under its grammar, for `run_turn`; as it is
        where nothing asks for one: no tools to be strict about, no form of the answer, no choice.
        Raises RequestError at once for what `for_turn` refuses.
        """
        options = replace(options, opening=Opening.ASSISTANT)  # the prompt says how it goes on
        is_strict = options.strict and bool(offered_tools(conversation))
        if not is_strict and options == TurnOptions(strict=options.strict):
            return engine
        self.for_turn(conversation, options)
        return _ConstrainedEngine(
            engine, lambda prompt: self.for_turn(conversation, options, self._written(prompt))
        )

    def _written(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        """What follows the prompt's last `<|start|>assistant`: nothing, or the header and the
        beginning of a message that the turn was led on to.
        """
        opening = (self._tokenizer.control.start, *self._tokenizer.encode(Role.ASSISTANT))
        for at in range(len(prompt_ids) - len(opening), -1, -1):
            if tuple(prompt_ids[at : at + len(opening)]) == opening:
                return prompt_ids[at + len(opening) :]
        raise RequestError("The prompt of a constrained turn must hold <|start|>assistant.")

    def for_completion(self, output_format: OutputFormat) -> TokenConstraint:
        """The same for text without a turn around it."""
        return self._compiled(output_grammar(output_format))

    def _compiled(self, grammar: Grammar, written: Sequence[int] = ()) -> TokenConstraint:
        try:
            return self._compiler.constraint(grammar.text, written)
        except RequestError:
            for where, text in grammar.parts:
                try:
                    self._compiler.constraint(text)
                except RequestError as error:
                    raise RequestError(f"{where}: {error}") from None
            raise


class _ConstrainedEngine:
    """Gives each request a constraint on its way to the engine."""

    def __init__(
        self, engine: TokenSource, constrain: Callable[[Sequence[int]], TokenConstraint]
    ) -> None:
        self._engine = engine
        self._constrain = constrain

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        constraint = self._constrain(request.prompt_ids)
        stream = self._engine.generate(replace(request, constraint=constraint))
        try:
            async for output in stream:
                yield output
        finally:
            await stream.aclose()


def token_table(tokenizer: Tokenizer, vocab_size: int) -> TokenTable:
    """The vocabulary as far as the model can write it. Raises RequestError when its end token is
    not among what the model knows.
    """
    control_ids = frozenset(i for i in tokenizer.control_ids if i < vocab_size)
    end_id = tokenizer.control.endoftext
    if end_id >= vocab_size:
        raise RequestError(
            f"The model knows {vocab_size} tokens, and <|endoftext|> is number {end_id}: this is "
            "the vocabulary of another model."
        )
    known = tokenizer.ordinary_ids | control_ids
    tokens = [tokenizer.token_bytes(i) if i in known else b"" for i in range(vocab_size)]
    return TokenTable(tokens, control_ids, end_id, tokenizer.encode)

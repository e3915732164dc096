"""What a turn may be → what the engine can follow: one `TokenConstraint` per generation.

Joins Harmony's grammars, which are text, with the engine's compiler, which knows tokens only.
"""

from __future__ import annotations

from dataclasses import replace

from ossia.agent.turn import offered_tools
from ossia.engine.constraint import GrammarCompiler, TokenConstraint, TokenTable
from ossia.errors import RequestError
from ossia.harmony.grammar import Grammar, OutputFormat, TurnOptions, output_grammar, turn_grammar
from ossia.harmony.messages import Conversation
from ossia.harmony.tokenizer import Tokenizer


class TurnConstraints:
    """The grammars of one model; make it once and share it between threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: the rows of the model's unembedding, which need not be the tokenizer's."""
        self._compiler = GrammarCompiler(lambda: token_table(tokenizer, vocab_size))

    def for_turn(self, conversation: Conversation, options: TurnOptions) -> TokenConstraint:
        """What the assistant's next generation may be. `options.tools` are those that the
        conversation declares, whatever the options say.

        Raises RequestError for options that contradict each other and for what cannot be enforced,
        naming the tool and the keyword. Each generation takes a constraint of its own.
        """
        return self._compiled(turn_grammar(replace(options, tools=offered_tools(conversation))))

    def for_completion(self, output_format: OutputFormat) -> TokenConstraint:
        """The same for text without a turn around it."""
        return self._compiled(output_grammar(output_format))

    def _compiled(self, grammar: Grammar) -> TokenConstraint:
        try:
            return self._compiler.constraint(grammar.text)
        except RequestError:
            for where, text in grammar.parts:
                try:
                    self._compiler.constraint(text)
                except RequestError as error:
                    raise RequestError(f"{where}: {error}") from None
            raise


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

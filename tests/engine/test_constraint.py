"""A grammar as the engine follows it: masks, acceptance and rollback against the parser's own word,
and the sentences in which a grammar is refused.
"""

from __future__ import annotations

import functools
import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from ossia.agent.turn_constraint import token_table
from ossia.engine.constraint import GrammarCompiler, TokenConstraint
from ossia.errors import RequestError
from ossia.harmony.tokenizer import Tokenizer
from support import small_tokenizer

VOCABULARIES = pytest.mark.parametrize("scrambled", [False, True], ids=["merges", "scrambled"])


@functools.cache
def compiler(scrambled: bool = True) -> GrammarCompiler:
    tokenizer = small_tokenizer(scrambled)
    return GrammarCompiler(lambda: token_table(tokenizer, vocab_size(tokenizer)))


def vocab_size(tokenizer: Tokenizer) -> int:
    return tokenizer.vocab_size + 37  # an unembedding is often larger than its vocabulary


def allowed(constraint: TokenConstraint) -> list[int]:
    mask_W = np.full(-(-constraint.vocab_size // 32), 0xABCD1234, np.uint32)
    constraint.fill(mask_W)
    bits = np.unpackbits(mask_W.view(np.uint8), bitorder="little")
    assert not bits[constraint.vocab_size :].any()
    return np.flatnonzero(bits).tolist()


def json_grammar(schema: object) -> str:
    return f"start: %json {json.dumps(schema)}"


@VOCABULARIES
def test_allowed_tokens_are_those_whose_bytes_fit(scrambled: bool) -> None:
    """A vocabulary's tokens against a regular expression, by Python's `re`."""
    tokenizer = small_tokenizer(scrambled)
    constraint = compiler(scrambled).constraint(r"start: /[ a-f]{1,3}(de|f)*;/")
    fits = re.compile(r"[ a-f]{1,3}(de|f)*(d|;)?")
    expected = [
        i for i in tokenizer.ordinary_ids if fits.fullmatch(tokenizer.decode([i])) is not None
    ]
    assert allowed(constraint) == sorted(expected)
    assert len(expected) > 20


@VOCABULARIES
def test_control_tokens_come_by_name_and_never_as_text(scrambled: bool) -> None:
    tokenizer = small_tokenizer(scrambled)
    constraint = compiler(scrambled).constraint('start: <|channel|> /[a-z<>|]*/ <|message|> "x"')
    assert allowed(constraint) == [tokenizer.control.channel]
    assert constraint.accept(tokenizer.control.channel)
    for token in tokenizer.encode("a<|message|>b"):
        assert constraint.accept(token)
    assert tokenizer.control_ids.intersection(allowed(constraint)) == {tokenizer.control.message}
    assert constraint.accept(tokenizer.control.message) and not constraint.may_end
    assert allowed(constraint) == tokenizer.encode("x")


def test_the_end_token_is_allowed_where_the_grammar_may_end() -> None:
    tokenizer, end = small_tokenizer(True), small_tokenizer(True).control.endoftext
    constraint = compiler().constraint('start: "a" "b"?')
    assert end not in allowed(constraint)
    assert constraint.accept(*tokenizer.encode("a"))
    assert constraint.may_end and not constraint.finished and end in allowed(constraint)
    assert constraint.accept(end) and constraint.finished
    constraint.rollback(1)
    assert constraint.accept(*tokenizer.encode("b")) and constraint.finished
    assert allowed(constraint) == [end]


def test_a_token_that_does_not_fit_changes_nothing() -> None:
    tokenizer = small_tokenizer(True)
    constraint = compiler().constraint('start: "ab"')
    before = allowed(constraint)
    for token in (tokenizer.control.call, *tokenizer.encode("z"), tokenizer.control.endoftext):
        assert not constraint.accept(token)
    assert constraint.num_accepted == 0 and constraint.failure is None
    assert allowed(constraint) == before


@VOCABULARIES
def test_random_walks_with_rollback_equal_a_fresh_start(scrambled: bool) -> None:
    """Whatever was accepted and taken back, the mask is that of the tokens that are left."""
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "s": {"type": "string"}, "l": {"items": {}}},
        "required": ["n", "l"],
        "additionalProperties": {"enum": ["x", 1]},
    }
    grammar = f"start: <|channel|> /[a-z ]*/ <|message|> %json {json.dumps(schema)} <|call|>"
    rng = random.Random(4)
    for _ in range(25):
        walked, kept = compiler(scrambled).constraint(grammar), list[int]()
        for _ in range(40):
            if kept and rng.random() < 0.3:
                taken_back = rng.randint(1, min(len(kept), 6))
                walked.rollback(taken_back)
                del kept[-taken_back:]
            choices = allowed(walked)
            if walked.finished:
                break
            token = rng.choice(choices)
            assert walked.count_legal([token]) == 1 and walked.accept(token)
            kept.append(token)
        fresh = compiler(scrambled).constraint(grammar)
        assert fresh.count_legal(kept) == len(kept)
        assert all(fresh.accept(token) for token in kept)
        assert walked.num_accepted == fresh.num_accepted == len(kept)
        assert allowed(walked) == allowed(fresh)
        assert (walked.may_end, walked.finished) == (fresh.may_end, fresh.finished)


@VOCABULARIES
def test_the_mask_and_acceptance_agree_on_every_token(scrambled: bool) -> None:
    constraint = compiler(scrambled).constraint(json_grammar({"type": ["integer", "null"]}))
    rng = random.Random(5)
    for _ in range(6):
        choices = set(allowed(constraint))
        for token in range(constraint.vocab_size):
            assert (constraint.count_legal([token]) == 1) == (token in choices), token
        assert constraint.accept(rng.choice(sorted(choices)))
        if constraint.finished:
            break


def test_two_requests_of_one_grammar_do_not_meet() -> None:
    tokenizer = small_tokenizer(True)
    first, second = (compiler().constraint('start: "a" "b" "c"') for _ in range(2))
    before = allowed(second)
    assert first.accept(*tokenizer.encode("a"))
    assert allowed(second) == before != allowed(first)


def test_only_what_was_accepted_can_be_taken_back() -> None:
    constraint = compiler().constraint('start: "ab"')
    with pytest.raises(ValueError, match="1 cannot be taken back"):
        constraint.rollback(1)


def test_a_grammar_that_gives_up_allows_nothing_and_says_why() -> None:
    """More alternatives at once than llguidance follows."""
    alternatives = [f"r{i}" for i in range(2500)]
    rules = [f'{name}: "a" s{name}\ns{name}: "b{name}"' for name in alternatives]
    grammar = "\n".join([f'start: "x" ({" | ".join(alternatives)})', *rules])
    constraint = compiler().constraint(grammar)
    constraint.follow(*small_tokenizer(True).encode("x"))
    assert constraint.failure is not None
    assert re.fullmatch(
        r"The grammar cannot be followed any further: [^\n]*2000[^\n]*\.", (constraint.failure)
    )
    assert allowed(constraint) == [] and not constraint.finished


def test_a_token_put_there_against_the_grammar_is_a_failure() -> None:
    tokenizer = small_tokenizer(True)
    constraint = compiler().constraint('start: "ab"')
    constraint.follow(tokenizer.control.call)
    assert str(tokenizer.control.call) in (constraint.failure or "")
    assert allowed(constraint) == []


REFUSED = {
    "not": {"not": {"type": "string"}},
    "if": {"if": {}, "then": {}},
    "oneOf": {"oneOf": [{"type": "object"}, {"properties": {"a": {}}}]},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "$ref to http://x/y": {"$ref": "http://x/y"},
    "$ref to /$defs/a": {"$ref": "#/$defs/a"},
    "format": {"type": "string", "format": "color"},
    "pattern": {"type": "string", "pattern": "(?=a)b"},
    "minProperties": {"type": "object", "properties": {"a": {}}, "minProperties": 1},
    "patternProperties": {
        "type": "object",
        "patternProperties": {"^a": {}, "b$": {"type": "null"}},
    },
    "type with the value colour": {"type": "colour"},
    "minimum": {"type": "integer", "minimum": 1e300},
    "minimum (5)": {"type": "integer", "minimum": 5, "maximum": 3},
}


@pytest.mark.parametrize("keyword", REFUSED)
def test_a_schema_is_refused_by_its_keyword(keyword: str) -> None:
    with pytest.raises(RequestError) as refusal:
        compiler().constraint(json_grammar(REFUSED[keyword]))
    sentence = str(refusal.value)
    assert keyword in sentence and sentence.endswith(".") and "\n" not in sentence


@pytest.mark.parametrize(
    "grammar", ["start: (", "start: a", "start: <|no|>", "", "start: /(/", "{"]
)
def test_a_grammar_that_is_none_is_refused_in_one_sentence(grammar: str) -> None:
    with pytest.raises(RequestError, match=r"cannot be compiled: [^\n]*\.$"):
        compiler().constraint(grammar)


def test_llguidance_is_imported_with_the_first_grammar_only() -> None:
    code = (
        "import sys, ossia.llm, ossia.agent.turn_constraint as t;print('llguidance' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr

"""Exact-token history: prompts continue each other whatever clients do to the messages, and nothing
is found that should not be.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.agent.events import Turn, TurnEnd
from ossia.agent.history import History, WrittenMessage
from ossia.agent.turn import run_turn
from ossia.errors import ConversationError, UsageError
from ossia.harmony.messages import (
    Conversation,
    Message,
    Role,
    Tool,
)
from ossia.harmony.render import render_for_completion
from scripted import (
    ANALYSIS,
    FINAL,
    ScriptedEngine,
    conversation,
    oddly_tokenized,
    small_tokenizer,
    tokens_of,
    turn_sampling,
)

TOKENIZER = small_tokenizer()
CONTROL = TOKENIZER.control
SAMPLING = turn_sampling(TOKENIZER)
CALL = "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
TOOL = Tool("f", "does f", {"type": "object", "properties": {"n": {}, "why": {}}})
ASKED = conversation(TOOL, text="go")


def take(
    history: History | None,
    conversation: Conversation,
    completion: list[int],
    *,
    ids: Mapping[int, str] | None = None,
    scope: str = "",
) -> tuple[Turn, tuple[int, ...]]:
    """The turn, and the prompt it was asked with."""
    engine = ScriptedEngine(completion)

    async def last() -> Turn:
        stream = run_turn(
            engine,
            TOKENIZER,
            conversation,
            sampling=SAMPLING,
            history=history,
            scope=scope,
            message_ids=ids,
        )
        events = [event async for event in stream]
        assert isinstance(events[-1], TurnEnd)
        return events[-1].turn

    turn = asyncio.run(last())
    return turn, engine.requests[0].prompt_ids


def step(n: int) -> list[int]:
    """A call with unusual but legal spacing, in unusual tokens."""
    text = (
        f"{ANALYSIS}  Step {n}: call it once more.\n<|end|>"
        f'{CALL}{{ "n" :  {n}.0, "why":[1 ,"b\\u00e9"] }}\n<|call|>'
    )
    return oddly_tokenized(TOKENIZER, text, n)


# -- What clients do to a turn --------------------------------------------------------------------

Client = Callable[[Turn, int], tuple[list[Message], dict[int, str]]]
"""From a turn, and the index its first message gets, to the messages that come back, with ids."""


def keeps_all(turn: Turn, _: int) -> tuple[list[Message], dict[int, str]]:
    return list(turn.messages), {}


def rewrites(turn: Turn, _: int) -> tuple[list[Message], dict[int, str]]:
    """Everything as a client that keeps JSON has it, no ids."""
    call = turn.tool_calls[0]
    arguments = json.dumps(dict(reversed(json.loads(call.arguments).items())), indent=1)
    reasoning = Message.of_text(Role.ASSISTANT, turn.reasoning.strip(), channel="analysis")
    called = Message.of_text(
        Role.ASSISTANT,
        arguments.replace(".0", ""),
        channel="commentary",
        recipient=call.recipient,
        content_type="json",
    )
    return [reasoning, called], {}


def forgets_reasoning(turn: Turn, begin: int) -> tuple[list[Message], dict[int, str]]:
    """Chat Completions: only the call comes back, with its id."""
    messages, _ = rewrites(turn, begin)
    return messages[1:], {begin: turn.tool_calls[0].call_id}


def empties_reasoning(turn: Turn, begin: int) -> tuple[list[Message], dict[int, str]]:
    """Responses, with reasoning items of which only the id is left."""
    messages, _ = rewrites(turn, begin)
    messages[0] = Message.of_text(Role.ASSISTANT, "", channel="analysis")
    return messages, {begin: turn.message_ids[0]}


@pytest.mark.parametrize("client", [keeps_all, rewrites, forgets_reasoning, empties_reasoning])
def test_each_prompt_of_a_tool_loop_begins_with_all_the_tokens_before(client: Client) -> None:
    history = History()
    messages, ids = list(ASKED.messages), dict[int, str]()
    before: tuple[int, ...] = ()
    for n in range(20):
        turn, prompt = take(history, Conversation(tuple(messages)), step(n), ids=ids)
        assert prompt[: len(before)] == before
        left_out = client is forgets_reasoning and n > 0
        assert ["put back" in line.text for line in turn.diagnostics] == [True] * left_out
        before = (*prompt, *step(n))
        came, new_ids = client(turn, len(messages))
        messages += [*came, turn.tool_calls[0].result(f"result {n}")]
        ids |= new_ids


def test_without_history_the_tokens_differ() -> None:
    """The tests above would prove nothing if rendering gave the same tokens."""
    turn, prompt = take(None, ASKED, step(0))
    asked = Conversation((*ASKED.messages, *turn.messages, turn.tool_calls[0].result("")))
    _, again = take(None, asked, step(1))
    assert again[: len(prompt)] == prompt
    assert again[: len(prompt) + len(step(0))] != (*prompt, *step(0))


def test_a_finished_turn_keeps_its_words_and_drops_its_reasoning() -> None:
    history = History()
    first, first_prompt = take(history, ASKED, step(0))
    result = first.tool_calls[0].result("r")
    asked = Conversation((*ASKED.messages, *first.messages, result))
    answer = f"{ANALYSIS}Enough.<|end|>{FINAL}It is  done. <|return|>"
    sampled = oddly_tokenized(TOKENIZER, answer, 7)
    second, _ = take(history, asked, sampled)
    asked = Conversation((*asked.messages, *second.messages, Message.of_text(Role.USER, "?")))
    _, prompt = take(history, asked, step(1))
    # The same tokens as were sampled, those of the analysis gone, message by message.
    tail = render_for_completion(TOKENIZER, Conversation((result,))).token_ids
    call = step(0)[step(0).index(CONTROL.end) + 1 :]
    final = [*sampled[sampled.index(CONTROL.end) + 1 : -1], CONTROL.end]
    ask_again = render_for_completion(TOKENIZER, Conversation(asked.messages[-1:])).token_ids
    opening = len(tokens_of(TOKENIZER, "<|start|>assistant"))
    kept = [*first_prompt[:-opening], *call, *tail[:-opening], *final, *ask_again]
    assert list(prompt) == kept


# -- What is not spliced --------------------------------------------------------------------------


def follow_up(turn: Turn, *messages: Message) -> Conversation:
    return Conversation(
        (*ASKED.messages, *(messages or turn.messages), Message.of_text(Role.USER, "and?"))
    )


def test_what_needed_repair_is_rendered_and_its_neighbours_are_not() -> None:
    history = History()
    text = f"{ANALYSIS}One<|end|>{CALL}{{ 'n': 1 }}]<|call|>"
    turn, prompt = take(history, ASKED, oddly_tokenized(TOKENIZER, text, 1))
    assert turn.diagnostics
    known = history.recall("", Conversation((*ASKED.messages, *turn.messages)))
    assert set(known.sampled) == {3} and known.unknown == 0
    asked = Conversation((*ASKED.messages, *turn.messages, turn.tool_calls[0].result("r")))
    _, again = take(history, asked, step(0))
    analysis = oddly_tokenized(TOKENIZER, text, 1)
    analysis = analysis[: analysis.index(CONTROL.end) + 1]
    assert again[: len(prompt) + len(analysis)] == (*prompt, *analysis)
    rendered = render_for_completion(TOKENIZER, asked, sampled={3: analysis}).token_ids
    assert again == rendered


def test_an_edited_message_is_taken_as_it_came_and_said_so() -> None:
    history = History()
    turn, _ = take(history, ASKED, tokens_of(TOKENIZER, f"{ANALYSIS}x<|end|>{FINAL}Yes.<|return|>"))
    edited = Message.of_text(Role.ASSISTANT, "No.", channel="final")
    ids = {len(ASKED.messages): turn.message_ids[1]}
    turn, prompt = take(history, follow_up(turn, edited), step(0), ids=ids)
    assert "No." in TOKENIZER.decode(prompt) and "Yes." not in TOKENIZER.decode(prompt)
    assert [d.text for d in turn.diagnostics if "history" in d.text]


def test_reasoning_comes_back_by_an_id_only() -> None:
    """By its content alone, a call may be that of another conversation."""
    history = History()
    turn, _ = take(history, ASKED, step(0))
    call = turn.messages[1]
    asked = Conversation((*ASKED.messages, call, turn.tool_calls[0].result("r")))
    assert history.recall("", asked).restored == 0
    _, prompt = take(history, asked, step(1))
    assert "Step 0" not in TOKENIZER.decode(prompt)
    restored = history.recall("", asked, {len(ASKED.messages): turn.tool_calls[0].call_id})
    assert restored.restored == 1 and restored.conversation.messages[3] == turn.messages[0]


def test_an_answer_cut_by_a_stop_string_or_a_bound_is_rendered() -> None:
    history = History()
    turn, _ = take(history, ASKED, tokens_of(TOKENIZER, f"{ANALYSIS}x<|end|>{FINAL}It is"))
    known = history.recall("", follow_up(turn))
    assert list(known.sampled) == [3] and known.unknown == 0


# -- Scopes ---------------------------------------------------------------------------------------


def test_no_content_and_no_id_reaches_another_scope() -> None:
    history = History()
    turn, _ = take(history, ASKED, step(0), scope="alice")
    ids = dict(enumerate(turn.message_ids, len(ASKED.messages)))
    asked = Conversation((*ASKED.messages, *turn.messages))
    assert len(history.recall("alice", asked, ids).sampled) == 2
    for scope in ("bob", "", "alice ", "ALICE"):
        known = history.recall(scope, asked, ids)
        assert (known.sampled, known.restored, known.unknown) == ({}, 0, 2)
        assert not history.alias(scope, turn.message_ids[0], "mine")
    turn, prompt = take(history, asked, step(1), ids=ids, scope="bob")
    assert prompt == render_for_completion(TOKENIZER, asked).token_ids


texts = st.text(alphabet="ab", max_size=3)
scopes = st.sampled_from(["", "a", "b", "ab"])


@settings(deadline=None)
@given(st.lists(st.tuples(scopes, scopes, texts), max_size=12), scopes, texts, scopes)
def test_tokens_found_were_remembered_in_that_scope(
    kept: list[tuple[str, str, str]], scope: str, text: str, name: str
) -> None:
    history = History()
    for number, (owner, message_id, said) in enumerate(kept):
        message = Message.of_text(Role.ASSISTANT, said, channel="final")
        history.remember(owner, [WrittenMessage(message, (number,), message_id)])
    asked = Conversation((Message.of_text(Role.ASSISTANT, text, channel="final"),))
    found = history.recall(scope, asked, {0: name}).sampled.get(0)
    owned = [n for n, (owner, _, said) in enumerate(kept) if (owner, said) == (scope, text)]
    assert found == (None if not owned else (found or (-1,)))
    assert found is None or found[0] in owned


# -- Contents -------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def shuffled(value: object, rng: random.Random) -> object:
    match value:
        case dict():
            items = [(key, shuffled(item, rng)) for key, item in value.items()]
            rng.shuffle(items)
            return dict(items)
        case list():
            return [shuffled(item, rng) for item in value]
        case _:
            return value


def called(arguments: str) -> Message:
    return Message.of_text(Role.ASSISTANT, arguments, recipient="functions.f")


def finds(kept: str, came: str) -> bool:
    history = History()
    history.remember("", [WrittenMessage(called(kept), (1,))])
    return bool(history.recall("", Conversation((called(came),))).sampled)


@settings(deadline=None)
@given(json_values, st.randoms(use_true_random=False), st.booleans(), st.sampled_from([None, 2]))
def test_arguments_are_the_same_in_every_spelling(
    value: object, rng: random.Random, ascii_only: bool, indent: int | None
) -> None:
    again = json.dumps(shuffled(value, rng), ensure_ascii=ascii_only, indent=indent)
    assert finds(json.dumps(value), again)


@settings(deadline=None)
@given(json_values, json_values)
def test_other_arguments_are_others(one: object, other: object) -> None:
    spelt, other_spelt = (json.dumps(v, sort_keys=True) for v in (one, other))
    if json.loads(spelt) != json.loads(other_spelt) or repr(one) == repr(other):
        assert finds(spelt, other_spelt) == (spelt == other_spelt)


@pytest.mark.parametrize(
    ("kept", "came", "same"),
    [
        ('{"a": 1.0}', '{"a":1}', True),
        ('{"a": 1e3}', '{"a":1000}', True),
        ('{"a": 12345678901234567890123}', '{"a":12345678901234567890124}', False),
        ('{"a": "1"}', '{"a": 1}', False),
        ('{"a": true}', '{"a": 1}', False),
        ('{"a": null}', "{}", False),
        ('{"a": 1, "a": 2}', '{"a": 2}', False),  # which of the two counts is not ours to say
        ("print(1)\r\n", "print(1)", True),
        ("print(1)", "print( 1)", False),
        ("[" * 100_000, "[" * 100_000, True),
        ('{"a": 1e99999999999999999999}', '{"a": 1e99999999999999999999}', True),
    ],
)
def test_arguments_by_value(kept: str, came: str, same: bool) -> None:
    assert finds(kept, came) is same


def test_the_channel_of_a_text_counts_and_that_of_a_call_does_not() -> None:
    history = History()
    thought = Message.of_text(Role.ASSISTANT, "x", channel="analysis")
    call = replace(called("{}"), channel="analysis")
    history.remember("", [WrittenMessage(thought, (1,)), WrittenMessage(call, (2,))])
    said = replace(thought, channel="final")
    assert history.recall("", Conversation((said,))).sampled == {}
    found = history.recall("", Conversation((replace(call, channel="commentary"),)))
    assert found.sampled == {0: (2,)} and found.conversation.messages[0] == call


# -- Memory ---------------------------------------------------------------------------------------


def said(text: str) -> Message:
    return Message.of_text(Role.ASSISTANT, text, channel="final")


def test_the_least_recently_used_is_forgotten() -> None:
    history = History(max_tokens=3 * (16 + 10))
    for n in range(3):
        history.remember("", [WrittenMessage(said(str(n)), (n,) * 10, f"id{n}")])
    assert history.recall("", Conversation((said("0"),))).unknown == 0  # used again
    history.remember("", [WrittenMessage(said("3"), (3,) * 10)])
    assert [history.recall("", Conversation((said(str(n)),))).unknown for n in range(4)] == [
        0,
        1,
        0,
        0,
    ]
    assert history.num_tokens <= 78
    assert not history.alias("", "id1", "x") and history.alias("", "id2", "x")
    history.remember("", [WrittenMessage(said("long"), (1,) * 100)])
    assert history.num_tokens <= 78


def test_a_history_of_nothing_and_a_negative_one() -> None:
    history = History(max_tokens=0)
    history.remember("", [WrittenMessage(said("x"), (1,), "id")])
    assert history.num_tokens == 0 and not history.alias("", "id", "other")
    with pytest.raises(UsageError, match="negative"):
        History(-1)


def test_saved_and_read_again() -> None:
    history = History()
    turn, _ = take(history, ASKED, step(0), scope="alice")
    assert history.alias("alice", turn.message_ids[0], "rs_1")
    history.remember("bob", [WrittenMessage(said("repaired"), None, "msg_2")])
    document = json.loads(json.dumps(history.to_dict()))
    again = History.from_dict(document)
    assert again.to_dict() == history.to_dict()
    assert again.num_tokens == history.num_tokens
    asked = Conversation((*ASKED.messages, turn.messages[1]))
    ids = {len(ASKED.messages): turn.tool_calls[0].call_id}
    assert again.recall("alice", asked, ids) == history.recall("alice", asked, ids)
    assert again.alias("alice", "rs_1", "rs_2")
    assert History.from_dict(document, max_tokens=0).num_tokens == 0
    for broken in ({}, [], {"steps": [{}]}, {"steps": [document["steps"][0] | {"ids": {"x": 9}}]}):
        with pytest.raises(ConversationError, match="saved history"):
            History.from_dict(broken)


def test_many_threads_share_a_history() -> None:
    history = History(max_tokens=2000)
    failed: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for n in range(200):
                message = said(f"{n % 7}")
                history.remember(name, [WrittenMessage(message, (n,) * 9, f"{n}")])
                history.alias(name, f"{n}", f"{n + 1}")
                found = history.recall(name, Conversation((message,)), {0: f"{n}"})
                assert all(ids[0] % 7 == n % 7 for ids in found.sampled.values())
                history.to_dict()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and history.num_tokens <= 2000

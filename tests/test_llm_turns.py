"""What `LLM.chat` hands to a turn: the history it keeps, budgets, the watchdog, the context."""

from __future__ import annotations

from dataclasses import replace

import pytest

from checkpoints import TINY
from ossia import LLM, Conversation, Tool, TurnFinish
from ossia.harmony.render import render_for_completion
from ossia.llm import ModelCard
from ossia.model.config import GenerationConfig
from scripted import ScriptedEngine, oddly_tokenized, small_tokenizer, tokens_of

TOKENIZER = small_tokenizer()
CALL = (
    "<|channel|>analysis<|message|>Look  it up.<|end|><|start|>assistant<|channel|>commentary"
    ' to=functions.f <|constrain|>json<|message|>{ "a" : 1 }<|call|>'
)
ANSWER = "<|channel|>final<|message|>Done.<|return|>"


def scripted(*completions: list[int], context: int | None = None) -> tuple[LLM, ScriptedEngine]:
    engine = ScriptedEngine(*completions)
    llm = LLM(
        name="scripted",
        config=replace(TINY, vocab_size=1024),
        generation=GenerationConfig(),
        tokenizer=TOKENIZER,
        engine=engine,  # type: ignore[arg-type]
        card=ModelCard(),
        kernels_name="scripted",
        context=context,
    )
    return llm, engine


@pytest.mark.parametrize("exact_history", [True, False])
def test_a_conversation_goes_on_in_the_models_own_tokens(exact_history: bool) -> None:
    sampled = oddly_tokenized(TOKENIZER, CALL, 5)
    llm, engine = scripted(sampled, tokens_of(TOKENIZER, ANSWER))
    asked = llm.conversation("go", tools=[Tool("f")], date="2026-01-02")
    turn = llm.chat(asked, exact_history=exact_history)
    asked = Conversation((*asked.messages, *turn.messages, turn.tool_calls[0].result("r")))
    llm.chat(asked, exact_history=exact_history)
    first, second = (request.prompt_ids for request in engine.requests)
    goes_on = second[: len(first) + len(sampled)] == (*first, *sampled)
    assert goes_on is exact_history
    llm.close()


def test_scopes_are_apart_and_ids_bring_reasoning_back() -> None:
    sampled = oddly_tokenized(TOKENIZER, CALL, 5)
    llm, engine = scripted(sampled, *[tokens_of(TOKENIZER, ANSWER)] * 2)
    asked = llm.conversation("go", tools=[Tool("f")], date="2026-01-02")
    turn = llm.chat(asked, scope="alice")
    (call,) = turn.tool_calls
    ids = {len(asked.messages): call.call_id}
    asked = Conversation((*asked.messages, turn.messages[1], call.result("r")))
    llm.chat(asked, scope="bob", message_ids=ids)
    llm.chat(asked, scope="alice", message_ids=ids)
    prompts = [TOKENIZER.decode(request.prompt_ids) for request in engine.requests]
    assert "Look  it up." not in prompts[1] and "Look  it up." in prompts[2]
    assert [request.cache_salt for request in engine.requests] == ["alice", "bob", "alice"]
    llm.close()


def test_budgets_and_the_watchdog() -> None:
    thinks = tokens_of(TOKENIZER, "<|channel|>analysis<|message|>" + "Think again. " * 400)
    llm, engine = scripted(thinks, tokens_of(TOKENIZER, "Yes.<|return|>"), thinks, thinks)
    turn = llm.chat("go", reasoning_budget=5)
    assert (turn.content, turn.finish) == ("Yes.", TurnFinish.STOP) and len(engine.requests) == 2
    assert llm.chat("go").finish is TurnFinish.REPETITION
    assert llm.chat("go", repetition=None).finish is TurnFinish.LENGTH
    llm.close()


def test_the_context_bounds_a_turn_as_well() -> None:
    thinks = tokens_of(TOKENIZER, "<|channel|>analysis<|message|>one two three four five six")
    llm, _ = scripted()
    asked = llm.conversation("go", date="2026-01-02")
    prompt = len(render_for_completion(TOKENIZER, asked).token_ids)
    llm, engine = scripted(thinks, tokens_of(TOKENIZER, "Yes."), context=prompt + len(thinks))
    turn = llm.chat(asked, answer_reserve=3)
    assert turn.content == "Yes." and len(engine.requests) == 2


def test_a_conversation_from_elsewhere_is_rendered_and_said_so() -> None:
    llm, _ = scripted(tokens_of(TOKENIZER, ANSWER), tokens_of(TOKENIZER, ANSWER))
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    turn = llm.chat([*before, {"role": "user", "content": "c"}])
    assert ["could not be found" in line.text for line in turn.diagnostics] == [True]
    assert llm.chat([before[0]]).diagnostics == ()
    llm.close()

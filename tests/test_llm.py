"""The Python API over the real path: a random checkpoint on disk, the kernels that `auto` takes,
the engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ossia
from checkpoints import TINY, random_checkpoint, write_json
from ossia import Conversation, Effort, FinishReason, Message, Role, SamplingParams, Tool
from ossia.agent.events import TurnEnd
from ossia.errors import (
    CheckpointError,
    ConversationError,
    EngineError,
    ModelNotFoundError,
    RequestError,
    TokenizerError,
    UsageError,
)
from ossia.harmony.grammar import JsonSchemaFormat, RegexFormat
from ossia.harmony.render import render_for_completion
from ossia.llm import LLM
from support import trained_tokenizer_json, write_tokenizer_json

CONFIG = replace(TINY, vocab_size=1024, max_position_embeddings=4096, eos_token_ids=(1019, 1020))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = random_checkpoint(tmp_path_factory.mktemp("model"), CONFIG)
    write_tokenizer_json(folder, trained_tokenizer_json())
    write_json(folder / "ossia.json", {"model_identity": "You are a random model."})
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with ossia.load(folder) as llm:
        yield llm


SHORT = SamplingParams(temperature=0, max_tokens=40)


def test_chat_is_generate_on_the_rendered_prompt(llm: LLM) -> None:
    """No code between the prompt's tokens and the model's: the same ids both ways."""
    sampling = replace(llm.default_sampling, max_tokens=40)
    conversation = llm.conversation("What is 48 * 37 + 12?", date="2026-01-02")
    turn = llm.chat(conversation, sampling=sampling)
    rendered = render_for_completion(llm.tokenizer, conversation).token_ids
    completion = llm.generate(rendered, sampling=sampling)
    assert completion.token_ids == turn.token_ids != ()
    text = llm.tokenizer.decode(rendered)
    again = llm.generate(text, sampling=sampling, control_tokens=True)
    assert again.prompt_ids == rendered and again.token_ids == turn.token_ids


def test_text_prompts_make_no_control_tokens_unless_asked(llm: LLM) -> None:
    completion = llm.generate("<|start|>", sampling=replace(SHORT, max_tokens=1))
    assert len(completion.prompt_ids) > 1
    completion = llm.generate(
        "<|start|>", sampling=replace(SHORT, max_tokens=1), control_tokens=True
    )
    assert completion.prompt_ids == (llm.tokenizer.control.start,)


def test_the_models_end_tokens_end_a_turn_whatever_the_sampling(llm: LLM) -> None:
    control = llm.tokenizer.control
    only_end = SamplingParams(temperature=0, max_tokens=9, logit_bias={control.return_: 1e9})
    assert llm.chat("hello", sampling=only_end).token_ids == (control.return_,)
    completion = llm.generate("hello", sampling=only_end)
    assert completion.token_ids == (control.return_,)
    assert completion.finish_reason is FinishReason.STOP


def test_all_four_forms_agree(llm: LLM) -> None:
    blocking = llm.generate("abc", sampling=SHORT)
    chunks = list(llm.stream_generate("abc", sampling=SHORT))
    assert "".join(chunk.text for chunk in chunks) == blocking.text
    assert tuple(t for chunk in chunks for t in chunk.token_ids) == blocking.token_ids
    assert chunks[-1].completion == blocking
    assert asyncio.run(llm.agenerate("abc", sampling=SHORT)) == blocking

    turn = llm.chat("hello", sampling=SHORT, date="2026-01-02")
    events = list(llm.stream_chat("hello", sampling=SHORT, date="2026-01-02"))
    assert isinstance(events[-1], TurnEnd)
    assert events[-1].turn.token_ids == turn.token_ids
    assert (
        asyncio.run(llm.achat("hello", sampling=SHORT, date="2026-01-02")).token_ids
        == turn.token_ids
    )


def test_many_threads_get_what_one_gets(llm: LLM) -> None:
    prompts = [f"prompt number {n}" for n in range(12)]
    sampling = SamplingParams(temperature=1, seed=7, max_tokens=20)
    alone = [llm.generate(prompt, sampling=sampling).token_ids for prompt in prompts]
    together: dict[int, tuple[int, ...]] = {}

    def work(n: int) -> None:
        together[n] = llm.generate(prompts[n], sampling=sampling).token_ids

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[n] for n in range(len(prompts))] == alone


def test_logprobs_are_aligned_and_plain_json(llm: LLM) -> None:
    sampling = SamplingParams(temperature=1, seed=1, max_tokens=5, logprobs=True, top_logprobs=3)
    completion = llm.generate("abc", sampling=sampling)
    values = json.loads(json.dumps(completion.to_json()))
    assert [entry["token"] for entry in values["logprobs"]] == values["tokens"]
    for entry in values["logprobs"]:
        top = [other["logprob"] for other in entry["top_logprobs"]]
        assert len(top) == 3 and top == sorted(top, reverse=True)
        assert entry["logprob"] <= top[0] + 1e-6
    assert "logprobs" not in llm.generate("abc", sampling=SHORT).to_json()


def test_stop_strings_end_a_completion(llm: LLM) -> None:
    free = llm.generate("abc", sampling=SHORT)
    stop = free.text[3:5]
    stopped = llm.generate("abc", sampling=SHORT, stop=[stop])
    assert stopped.text == free.text[: free.text.index(stop)]
    assert (stopped.stop, stopped.finish_reason) == (stop, FinishReason.STOP)


def test_the_system_message_and_its_date(llm: LLM) -> None:
    text = llm.tokenizer.decode(
        render_for_completion(
            llm.tokenizer,
            llm.conversation(
                [{"role": "user", "content": "hi"}],
                effort="high",
                instructions="Be brief.",
                tools=[Tool("f", "does f")],
                date="2026-01-02",
            ),
        ).token_ids
    )
    assert "You are a random model." in text
    assert "Current date: 2026-01-02" in text and "Reasoning: high" in text
    assert "# Instructions\n\nBe brief." in text and "type f = " in text
    today = llm.conversation("hi").messages[0].content[0].conversation_start_date
    assert len(today) == len("2026-01-02")


WEATHER = Tool(
    "weather",
    "of a city",
    {"type": "object", "properties": {"days": {"enum": [1, 2]}}, "required": ["days"]},
)


def test_a_random_model_calls_a_tool_with_arguments_of_its_schema(llm: LLM) -> None:
    sampling = SamplingParams(seed=1, max_tokens=400, logit_bias=_ends_messages(llm))
    turn = llm.chat("hello", tools=[WEATHER], tool_choice="weather", sampling=sampling)
    assert turn.finish == "tool_calls" and not turn.diagnostics
    assert [call.name for call in turn.tool_calls] == ["weather"]
    assert json.loads(turn.tool_calls[0].arguments) in ({"days": 1}, {"days": 2})


def test_a_random_model_answers_in_the_form_asked_for(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = JsonSchemaFormat(schema | {"additionalProperties": False}, name="verdict")
    shown = llm.conversation("hello", response_format=form).messages[1].content[0]
    assert [f.name for f in shown.response_formats] == ["verdict"]
    sampling = SamplingParams(seed=1, max_tokens=400, logit_bias=_ends_messages(llm))
    turn = llm.chat("hello", response_format=form, sampling=sampling)
    assert json.loads(turn.content or "") in ({"ok": True}, {"ok": False})
    completion = llm.generate("abc", response_format=RegexFormat("(yes|no)!"), sampling=SHORT)
    assert completion.text in ("yes!", "no!") and completion.finish_reason is FinishReason.STOP


def _ends_messages(llm: LLM) -> dict[int, float]:
    """A bias under which a random model's messages are short."""
    ends = (llm.tokenizer.control.end, *llm.tokenizer.encode("final"), *llm.tokenizer.encode(" to"))
    return dict.fromkeys(ends, 9.0) | {llm.tokenizer.encode(" ")[0]: -20.0}


def test_multi_turn_conversations_carry_on(llm: LLM) -> None:
    first = llm.conversation("one")
    turn = llm.chat(first, sampling=SHORT)
    second = Conversation((*first.messages, *turn.messages, Message.of_text(Role.USER, "two")))
    assert llm.chat(second, sampling=SHORT).usage.prompt_tokens > turn.usage.prompt_tokens


@pytest.mark.parametrize(
    ("messages", "options", "error", "words"),
    [
        ([{"role": "user"}], {}, ConversationError, "role.*content"),
        ([{"role": "system", "content": "x"}], {}, ConversationError, "instructions"),
        ([{"role": "user", "content": "x", "name": "y"}], {}, ConversationError, "keys"),
        ("x", {"effort": "extreme"}, UsageError, "low, medium or high"),
        ("x", {"stop": [""]}, RequestError, "empty"),
        ("x " * 6000, {}, RequestError, "4096"),
        ("x", {"tool_choice": "required"}, RequestError, "no tool may be called"),
        (
            "x",
            {"tool_choice": "required", "tools": [WEATHER], "reasoning_budget": 5},
            RequestError,
            "leave out reasoning_budget",
        ),
        ("x", {"tool_choice": "nope"}, RequestError, "'nope', which is not offered"),
        ("x", {"tools": [Tool("f", "", {"not": {}})]}, RequestError, "f: parameters.*keyword not"),
        (Conversation(), {"effort": Effort.HIGH}, ConversationError, "its own effort"),
    ],
)
def test_wrong_use_is_one_sentence(llm: LLM, messages, options, error, words) -> None:
    with pytest.raises(error, match=words) as raised:
        llm.chat(messages, **options)
    assert "\n" not in str(raised.value)


def test_generate_refuses_what_no_model_can_read(llm: LLM) -> None:
    with pytest.raises(RequestError, match="0 to 1023; got 99999"):
        llm.generate([99999])
    with pytest.raises(RequestError):
        llm.generate([])


def test_a_bias_that_is_no_number_is_refused() -> None:
    with pytest.raises(RequestError, match="logit_bias must hold numbers"):
        SamplingParams(logit_bias={3: float("nan")})


def test_unknown_models_and_kernels(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="ossia pull"):
        ossia.load("openai/gpt-oss-20b-that-nobody-has")
    with pytest.raises((ModelNotFoundError, CheckpointError)):
        ossia.load(tmp_path)
    with pytest.raises(UsageError, match="reference"):
        ossia.load(folder, kernels="abacus")
    with pytest.raises(UsageError, match="--threads is a setting of the native"):
        ossia.load(folder, kernels="reference", threads=1)


@pytest.mark.parametrize("settings", [{"exact": True}, {"dense_dtype": "bf16"}, {"threads": 1}])
def test_settings_of_the_kernels(folder: Path, llm: LLM, settings: dict[str, Any]) -> None:
    with ossia.load(folder, **settings) as other:
        assert other.kernels_name == "native"
        completion = other.generate("abc", sampling=replace(SHORT, logprobs=True))
    default = llm.generate("abc", sampling=replace(SHORT, logprobs=True))
    assert completion.logprobs is not None and default.logprobs is not None
    if "threads" in settings:
        assert completion.logprobs == default.logprobs  # threads change nothing
    else:  # the arithmetic is another: close, and not the same
        assert completion.logprobs[0] == pytest.approx(default.logprobs[0], abs=0.2)
        assert completion.logprobs[0] != default.logprobs[0]


def test_a_vocabulary_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "m", replace(CONFIG, vocab_size=512, eos_token_ids=(1,)))
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        ossia.load(folder)
    write_tokenizer_json(folder, trained_tokenizer_json())
    with pytest.raises(TokenizerError, match="512"):
        ossia.load(folder)


def test_a_malformed_card_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    card = tmp_path / "ossia.json"
    for text in ("{", "[]", '{"colour": 1}', '{"model_identity": 1}'):
        card.unlink()
        card.write_text(text)
        with pytest.raises(CheckpointError, match=r"ossia\.json"):
            ossia.load(tmp_path)


def test_the_original_layout_finds_the_vocabulary_of_its_parent(tmp_path: Path) -> None:
    # The original config has no max_position_embeddings: it follows from the RoPE constants.
    folder = random_checkpoint(tmp_path / "original", CONFIG, layout="original")
    write_tokenizer_json(tmp_path, trained_tokenizer_json())
    with ossia.load(folder) as llm:
        assert llm.chat("hello", sampling=SHORT).token_ids
    elsewhere = tmp_path / "elsewhere"
    write_tokenizer_json(elsewhere, trained_tokenizer_json())
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError):
        ossia.load(folder)
    with ossia.load(folder, tokenizer=elsewhere, use_mmap=False) as llm:
        assert llm.generate("hello", sampling=SHORT).token_ids


def test_a_closed_model_says_so(folder: Path) -> None:
    llm = ossia.load(folder)
    llm.close()
    llm.close()
    with pytest.raises(EngineError, match="closed"):
        llm.generate("x")


def test_loading_reports_progress(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    ossia.load(folder, progress=lambda done, total: steps.append((done, total))).close()
    total = 2 * CONFIG.num_hidden_layers + 2
    assert steps == [(n, total) for n in range(1, total + 1)]

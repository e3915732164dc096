"""`ossia chat`: what is shown of a turn, the commands of a conversation, Ctrl-C."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from checkpoints import TINY
from ossia.cli import terminal
from ossia.cli.chat_session import ChatSession
from ossia.errors import EngineError, RequestError
from ossia.harmony.messages import Conversation, Effort
from ossia.harmony.render import render_for_completion
from ossia.llm import LLM, ModelCard
from ossia.model.config import GenerationConfig
from scripted import ScriptedEngine, small_tokenizer, tokens_of

TOKENIZER = small_tokenizer()
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
ANSWER = f"{ANALYSIS}They greet.<|end|>{FINAL}Hello!<|return|>"


def session(
    *completions: str, hide_reasoning: bool = False, engine: ScriptedEngine | None = None
) -> tuple[ChatSession, ScriptedEngine]:
    engine = engine or ScriptedEngine(*(tokens_of(TOKENIZER, text) for text in completions))
    llm = LLM(
        name="scripted",
        config=TINY,
        generation=GenerationConfig(),
        tokenizer=TOKENIZER,
        engine=engine,  # type: ignore[arg-type]
        card=ModelCard(),
        kernels_name="scripted",
    )
    chat = ChatSession(
        llm,
        effort=Effort.MEDIUM,
        instructions=None,
        sampling=llm.default_sampling,
        stop=(),
        hide_reasoning=hide_reasoning,
    )
    return chat, engine


def talk(chat: ChatSession, monkeypatch: pytest.MonkeyPatch, lines: Sequence[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    chat.talk()


def prompts(engine: ScriptedEngine) -> list[str]:
    return [TOKENIZER.decode(request.prompt_ids) for request in engine.requests]


def test_reasoning_is_shown_apart_from_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    session(ANSWER)[0].answer("hi")
    assert capsys.readouterr().out == "[reasoning]\nThey greet.\n\n[answer]\nHello!\n"


def test_hidden_reasoning_stays_off_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    session(ANSWER, hide_reasoning=True)[0].answer("hi")
    assert capsys.readouterr().out == "Hello!\n"


def test_on_a_terminal_reasoning_is_dimmed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "is_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    session(ANSWER)[0].answer("hi")
    out = capsys.readouterr().out
    assert "\x1b[2mThey greet.\x1b[0m" in out
    assert "\x1b[2mHello" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    session(ANSWER)[0].answer("hi")
    assert "\x1b" not in capsys.readouterr().out


def test_a_model_cannot_drive_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "is_terminal", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    session(f"{FINAL}\x1b[2J\x07red\x9b31m\r\ttab\nline<|return|>")[0].answer("hi")
    out = capsys.readouterr().out
    assert not any(control in out for control in "\x1b\x07\x9b\r")
    assert "\ttab\nline" in out


def test_json_of_a_turn(capsys: pytest.CaptureFixture[str]) -> None:
    session(ANSWER)[0].answer_as_json("hi")
    values = json.loads(capsys.readouterr().out)
    assert (values["reasoning"], values["content"]) == ("They greet.", "Hello!")
    assert values["tokens"] == tokens_of(TOKENIZER, ANSWER) and values["finish"] == "stop"
    session(ANSWER, hide_reasoning=True)[0].answer_as_json("hi")
    hidden = capsys.readouterr().out
    # The tokens spell the reasoning: they must go with it.
    assert "greet" not in hidden and "tokens" not in json.loads(hidden)


def test_notes_do_not_quote_hidden_reasoning(capsys: pytest.CaptureFixture[str]) -> None:
    stray = f"{ANALYSIS}think<|end|>secret thought{FINAL}Hello!<|return|>"
    session(stray, hide_reasoning=True)[0].answer("hi")
    hidden = capsys.readouterr()
    assert "secret" not in hidden.out + hidden.err and "repaired" in hidden.err
    session(stray)[0].answer("hi")
    assert "secret" in capsys.readouterr().err


def test_a_conversation_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, engine = session(ANSWER, ANSWER)
    talk(chat, monkeypatch, ["hi", "", "and again \\", "on two lines"])
    first, second = prompts(engine)
    assert "<|message|>hi<|end|>" in first
    assert "<|message|>Hello!<|end|>" in second and "They greet" not in second
    assert "and again \non two lines<|end|>" in second


def test_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat, engine = session(ANSWER, ANSWER, ANSWER)
    saved = tmp_path / "chat.json"
    talk(
        chat,
        monkeypatch,
        "one|/effort high|two|/reset|/save FILE|/effort low|three|/effort much|/effort|/save|"
        "/nonsense|/help|/quit|never".replace("FILE", str(saved)).split("|"),
    )
    first, second, third = prompts(engine)
    assert "Reasoning: medium" in first and "one<|end|>" in first
    assert "Reasoning: high" in second and "one<|end|>" in second
    assert "Reasoning: low" in third and "one<|end|>" not in third
    captured = capsys.readouterr()
    assert "takes low, medium or high; got 'much'" in captured.err
    assert "got 'nothing'" in captured.err and "name of a file" in captured.err
    assert "no command /nonsense" in captured.err
    assert "/reset" in captured.out
    conversation = Conversation.from_json(saved.read_text())
    assert render_for_completion(TOKENIZER, conversation).token_ids


def test_saving_where_one_cannot_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat, engine = session(ANSWER)
    talk(chat, monkeypatch, [f"/save {tmp_path}/no/such/folder.json", "hi"])
    assert "No such file" in capsys.readouterr().err
    assert len(engine.requests) == 1  # the conversation goes on


def test_a_date_is_pinned_for_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, engine = session(ANSWER, ANSWER)
    talk(chat, monkeypatch, ["one", "two"])
    dates = [
        line for text in prompts(engine) for line in text.splitlines() if "Current date" in line
    ]
    assert len(dates) == 2 and len(set(dates)) == 1


def test_ctrl_c_stops_the_turn_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, engine = session(ANSWER, ANSWER)

    def interrupted(*args, **options):
        if not engine.requests:
            engine.requests.append(None)  # type: ignore[arg-type]
            raise KeyboardInterrupt
        return original(*args, **options)

    original = chat._llm.stream_chat
    monkeypatch.setattr(chat._llm, "stream_chat", interrupted)
    talk(chat, monkeypatch, ["forget this", "hello"])
    captured = capsys.readouterr()
    assert "stopped" in captured.err and "Hello!" in captured.out
    assert "forget this" not in TOKENIZER.decode(engine.requests[1].prompt_ids)


def test_a_cut_turn_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    session(f"{ANALYSIS}We need")[0].answer("hi")
    assert "cut" in capsys.readouterr().err


def test_a_failing_engine_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ScriptedEngine):
        async def generate(self, request):
            raise EngineError("The engine has stopped: out of paper")
            yield

    chat, _ = session(engine=Broken())
    talk(chat, monkeypatch, ["hi"])
    assert capsys.readouterr().err == "error: The engine has stopped: out of paper\n"


def test_a_conversation_that_outgrows_the_context_is_told_of_reset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(ScriptedEngine):
        async def generate(self, request):
            raise RequestError("The prompt has 9 tokens; the context holds 8.")
            yield

    chat, _ = session(engine=Full())
    talk(chat, monkeypatch, ["hi"])
    error = capsys.readouterr().err
    assert error == "error: The prompt has 9 tokens; the context holds 8. /reset begins anew.\n"

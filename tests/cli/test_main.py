"""The command as a whole: exit codes, one sentence per error, the same tokens by every way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ossia import __version__
from ossia.cli import chat as chat_module
from ossia.cli.main import run


def ossia(*arguments: str, stdin: str | bytes = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ossia.cli.main", *arguments]
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(command, input=data, capture_output=True, timeout=120)
    return subprocess.CompletedProcess(
        command, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"ossia {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no-such-command"], 2, "No such command"),
        (["chat", "--no-such-option"], 2, "No such option"),
        (["chat", "hi", "--effort", "extreme"], 2, "low, medium or high; got 'extreme'"),
        (["chat", "--json"], 2, "PROMPT"),
        (["chat", "hi", "--model", "no/such-model-anywhere"], 1, "ossia pull"),
        (["chat", "hi", "--kernels", "abacus"], 2, "auto, native, reference, torch"),
        (["chat", "hi", "--threads", "999"], 2, "got 999"),
        (["chat", "hi", "--threads", "0"], 2, "threads"),
        (["chat", "hi", "--kernels", "reference", "--exact"], 2, "--kernels native"),
        (["generate", "--prompt", "x", "--dense-dtype", "int4"], 2, "int8 or bf16"),
        (["generate", "--prompt", "x", "--instruction-set", "neon"], 2, "got 'neon'"),
        (["chat", "hi", "--temperature", "-1"], 1, "temperature"),
        (["chat", "hi", "--max-tokens", "0"], 2, "max-tokens"),
        (["generate"], 2, "--prompt"),
        (["generate", "--prompt", "x", "--tokens", "1"], 2, "one of them"),
        (["generate", "--tokens", "1,x"], 2, "integers"),
        (["generate", "--tokens", "999999999"], 1, "token ids"),
        (["generate", "--prompt", "x", "--logprobs", "3"], 2, "--json"),
        (["generate", "--prompt", ""], 1, "empty"),
        (["generate", "--prompt", "x", "--regex", "(a"], 1, "regular expression"),
        (["generate", "--prompt", "x", "--regex", "a", "--lark", "b"], 2, "one of --json-schema"),
        (["generate", "--prompt", "x", "--json-schema", "no/such.json"], 2, "Cannot read"),
        (["inspect", "no/such-model-anywhere"], 1, "ossia pull"),
    ],
)
def test_errors_are_one_sentence_and_a_code(arguments: list[str], code: int, words: str) -> None:
    done = ossia(*arguments)
    assert done.returncode == code, done
    assert words in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_generate_in_a_given_form(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [{"n": [1, 2]}]}')
    done = ossia("generate", "--prompt", "x", "--json-schema", str(schema))
    assert json.loads(done.stdout) == {"n": [1, 2]}, done.stderr
    done = ossia("generate", "--prompt", "x", "--regex", "[ab]{3}", "--json")
    assert re.fullmatch("[ab]{3}", json.loads(done.stdout)["text"]), done.stderr


def test_a_defect_of_our_own_shows_no_stack_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(chat_module.options, "load_model", broken)
    monkeypatch.delenv("OSSIA_DEBUG", raising=False)
    assert run(["chat", "hi"]) == 1
    error = capsys.readouterr().err
    assert "this is a defect" in error and "Traceback" not in error
    monkeypatch.setenv("OSSIA_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(["chat", "hi"])


@pytest.mark.parametrize("error", [MemoryError(), FileNotFoundError(2, "No such file", "x.json")])
def test_errors_of_the_machine_are_sentences(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(chat_module.options, "load_model", broken)
    assert run(["chat", "hi"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.endswith(".\n") and "Traceback" not in text


def test_input_that_is_not_text(tmp_path: Path) -> None:
    done = ossia("chat", "-", stdin=b"\xff\xfe")
    assert done.returncode == 1
    assert "not UTF-8" in done.stderr and "Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_error_of_ours() -> None:
    command = f"{sys.executable} -m ossia.cli.main inspect nano | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_generate_on_the_rendered_prompt_gives_the_tokens_of_chat() -> None:
    """No code between prompt and tokens computes an answer."""
    question = "What is 48 * 37 + 12?"
    turn = json.loads(ossia("chat", question, "--json").stdout)
    assert turn["reasoning"] and turn["content"]
    # The very conversation, through the other door: /save writes it, render makes it text.
    from ossia.cli.options import ModelOptions, load_model

    with load_model(ModelOptions().open(), quiet=True) as llm:
        document = llm.conversation(question).to_json()
    rendered = json.loads(ossia("harmony", "render", "--jsonl", stdin=document + "\n").stdout)
    raw = json.loads(ossia("generate", "--prompt", rendered["text"], "--json").stdout)
    assert raw["prompt_tokens"] == rendered["tokens"]
    assert raw["tokens"] == turn["tokens"]
    ids = ",".join(map(str, rendered["tokens"]))
    again = json.loads(ossia("generate", "--tokens", ids, "--json", "--logprobs", "2").stdout)
    assert again["tokens"] == turn["tokens"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in again["logprobs"])


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_failed_completion_is_a_failed_command(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no memory for this step")

    monkeypatch.setattr("ossia.kernels.reference.ReferenceKernels.moe", broken)
    generate = ["generate", "--prompt", "x", "--max-tokens", "2", "--kernels", "reference"]
    assert run([*generate, *options]) == 1
    assert "no memory for this step" in capsys.readouterr().err


def test_hidden_reasoning_is_in_no_output() -> None:
    shown = ossia("chat", "What is 2 + 2?")
    hidden = ossia("chat", "What is 2 + 2?", "--hide-reasoning")
    assert "[reasoning]" in shown.stdout and "[reasoning]" not in hidden.stdout
    answer = shown.stdout.split("[answer]\n")[1]
    assert hidden.stdout == answer


def test_the_banner_is_honest() -> None:
    done = ossia("chat", "hi")
    assert "tiny" in done.stderr and "ossia pull openai/gpt-oss-20b" in done.stderr
    assert "13.8 GB" in done.stderr

"""`ossia train check`: what it shows is what training sees, in colour, in a pipe and as JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

import ossia.nano
from checkpoints import random_checkpoint
from ossia.cli.train_check import bracketed, check, coloured
from ossia.errors import ConfigError, OssiaError, TokenizerError, TrainingError
from ossia.harmony.messages import Conversation, Effort, Message, Role, SystemContent
from ossia.harmony.render import TrainingExample, render_for_training
from ossia.train.check import DataCheck, load_vocabulary, pieces
from support import small_tokenizer, trained_tokenizer_json, write_tokenizer_json

app = typer.Typer()
app.command()(check)

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "thinking": "Greet.", "content": "Hello\nthere 👍🏽"}


def run(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    )
    return path


def chat(*messages: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": list(messages), **keys}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vocabulary alone, as training makes it first."""
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer_json(folder, trained_tokenizer_json())
    return folder


# -- Pieces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scrambled", [False, True])
def test_pieces_are_the_example(scrambled):
    """Every token is in one piece, and the texts are the text, whatever its bytes."""
    tokenizer = small_tokenizer(scrambled)
    conversation = Conversation(
        (
            Message.of_text(Role.USER, "日本 👍🏽 <|end|> naïve"),
            Message.of_text(Role.ASSISTANT, "è\x1b[31m", channel="final"),
        )
    )
    example = render_for_training(tokenizer, conversation)
    found = list(pieces(tokenizer, example))
    assert "".join(piece.text for piece in found) == tokenizer.decode(example.token_ids)
    assert sum(piece.tokens for piece in found) == len(example.token_ids)
    assert sum(piece.tokens for piece in found if piece.weight) == sum(example.loss_weights)
    assert max(piece.tokens for piece in found) > 1  # bytes of a character over several tokens
    controls = [piece.text for piece in found if piece.is_control]
    assert controls == [
        "<|start|>", "<|message|>", "<|end|>", "<|start|>", "<|channel|>", "<|message|>",
        "<|return|>",
    ]  # fmt: skip


def example_of(*tokens: tuple[str, int]) -> TrainingExample:
    """Tokens by their text, one each, and the weights."""
    tokenizer = small_tokenizer(False)
    ids: list[int] = []
    for text, _ in tokens:
        [token_id] = tokenizer.encode_with_controls(text)
        ids.append(token_id)
    return TrainingExample(tuple(ids), tuple(weight for _, weight in tokens))


SMALL = example_of(
    ("<|start|>", 0), ("u", 0), ("\n", 0), ("<|start|>", 0), ("a", 0), ("<|message|>", 1),
    ("x", 1), ("\n", 1), ("<|end|>", 1), ("<|start|>", 1), ("b", 1), ("c", 0), ("<|end|>", 0),
)  # fmt: skip


def test_brackets_hold_what_is_learnt():
    assert bracketed(pieces(small_tokenizer(False), SMALL)) == (
        "<|start|>·u·↵\n\n<|start|>·a·[<|message|>·x·↵\n·<|end|>\n<|start|>·b]·c·<|end|>"
    )
    assert bracketed(pieces(small_tokenizer(False), example_of(("a", 1)))) == "[a]"
    assert bracketed([]) == ""


def test_colours_say_what_is_learnt():
    text = coloured(pieces(small_tokenizer(False), SMALL))
    assert text.plain == "<|start|>u↵\n\n<|start|>a<|message|>x↵\n<|end|>\n<|start|>bc<|end|>"
    styles = [str(span.style) for span in text.spans]
    assert len(styles) == len(SMALL.token_ids)
    assert ["underline" in style for style in styles] == [i % 2 == 1 for i in range(len(styles))]
    kinds = [style.removesuffix(" underline") for style in styles]
    assert kinds == [
        "bold blue", "dim", "dim", "bold blue", "dim", "bold magenta", "green", "green",
        "bold magenta", "bold magenta", "green", "dim", "bold blue",
    ]  # fmt: skip


def test_nothing_in_the_data_drives_the_terminal():
    tokenizer = small_tokenizer(False)
    conversation = Conversation((Message.of_text(Role.USER, "\x1b[2J\x9b\r"),))
    example = render_for_training(tokenizer, conversation)
    for shown in (
        coloured(pieces(tokenizer, example)).plain,
        bracketed(pieces(tokenizer, example)),
    ):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
        assert "␛" in shown


# -- The whole file -------------------------------------------------------------------------------


def test_the_summary_counts_what_rendering_gives(tmp_path):
    """Expected: the renderer's own tokens and weights, counted here."""
    tokenizer = small_tokenizer(False)
    conversations = [
        Conversation(
            (
                Message(Role.SYSTEM, (SystemContent(reasoning_effort=effort),)),
                Message.of_text(Role.USER, "word " * length),
                Message.of_text(Role.ASSISTANT, "Hm.", channel="analysis"),
                Message.of_text(Role.ASSISTANT, "Yes.", channel="final"),
            )
        )
        for effort, length in ((Effort.LOW, 1), (Effort.HIGH, 300), (None, 20))
    ]
    examples = [render_for_training(tokenizer, conversation) for conversation in conversations]
    lengths = [len(example.token_ids) for example in examples]
    path = write(tmp_path, *(conversation.to_dict() for conversation in conversations))
    found = DataCheck(path, tokenizer, context=max(lengths) - 1)
    assert [checked.example for checked in found] == examples
    learnt = sum(sum(example.loss_weights) for example in examples)
    buckets: dict[str, int] = {}
    for length in lengths:
        begin = 2 ** (len(f"{length:b}") - 1)
        buckets[str(begin)] = buckets.get(str(begin), 0) + 1
    summary = found.summary.to_json()
    assert summary.pop("problems") == [
        f"{path}, line 2: the conversation has {lengths[1]} tokens, more than the "
        f"{lengths[1] - 1} that are trained at once; shorten it, take it out, or raise the limit."
    ]
    assert summary == {
        "conversations": 3,
        "tokens": sum(lengths),
        "learnt": learnt,
        "learnt_share": round(learnt / sum(lengths), 6),
        "longest": lengths[1],
        "longest_line": 2,
        "too_long": 1,
        "roles": {"system": 3, "user": 3, "assistant analysis": 3, "assistant final": 3},
        "efforts": {"low": 1, "high": 1, "none": 1},
        "lengths": buckets,
        "problem_count": 1,
    }


def test_calls_and_results_are_counted_apart(tmp_path):
    function = {"name": "f", "arguments": "{}"}
    document = chat(
        {"role": "developer", "content": "x"},
        USER,
        {"role": "assistant", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "1"},
        ANSWER,
        tools=[{"type": "function", "function": {"name": "f"}}],
    )
    found = DataCheck(write(tmp_path, document), small_tokenizer(False), context=None)
    assert len(list(found)) == 1
    assert found.summary.roles == {
        "system": 1,
        "developer": 1,
        "user": 1,
        "assistant call": 1,
        "tool": 1,
        "assistant analysis": 1,
        "assistant final": 1,
    }


# -- The command ----------------------------------------------------------------------------------


def test_a_pipe_gets_brackets_and_a_summary(tmp_path, model):
    path = write(tmp_path, chat(USER, ANSWER), chat(USER, ANSWER, reasoning_effort="low"))
    result = run(model, path, "--count", 1)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    [header] = [line for line in result.stdout.splitlines() if line.startswith("line ")]
    checked = next(DataCheck(path, small_tokenizer(False), context=None))
    share = checked.learnt / checked.tokens
    assert header == f"line 1: {checked.tokens} tokens, {checked.learnt} learnt ({share:.0%})"
    unmarked = result.stdout.replace("·", "")
    assert "[<|channel|>analysis<|message|>Greet.<|end|>\n<|start|>assistant<|channel|>" in unmarked
    assert "Hello↵\nthere 👍🏽<|return|>]" in unmarked
    for shown in (
        r"conversations +2\n",
        rf"longest +{checked.tokens} tokens, line 1\n",
        r"messages +assistant analysis 2, assistant final 2, system 2, user 2\n",
        r"efforts +low 1, medium 1\n",
        r"problems +0\n",
        r"\d+–\d+ +2 █{40}\n",
    ):
        assert re.search(shown, result.stdout), shown


def test_a_terminal_gets_colours(tmp_path, model):
    path = write(tmp_path, chat(USER, ANSWER))
    program = "from ossia.cli.train_check import check; import typer; typer.run(check)"
    printed = subprocess.run(
        [sys.executable, "-c", program, str(model), str(path)],
        env={**os.environ, "FORCE_COLOR": "1", "TERM": "xterm", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "\x1b[1;34m<|start|>" in printed  # bold blue: context
    assert re.search(r"\x1b\[1;(?:4;)?35m<\|return\|>", printed)  # bold magenta: learnt
    assert "·" not in printed and "[<|channel|>" not in printed


def test_json_lines_are_for_programs(tmp_path, model):
    path = write(tmp_path, chat(USER, ANSWER), "nonsense", chat(USER))
    result = run(model, path, "--json")
    assert result.exit_code == 1
    first, second, last = map(json.loads, result.stdout.splitlines())
    tokenizer = small_tokenizer(False)
    assert first["text"] == tokenizer.decode(first["tokens"])
    assert first["text"].endswith("👍🏽<|return|>")
    assert len(first["weights"]) == len(first["tokens"])
    assert sum(first["weights"]) == first["learnt"] > 0
    assert (first["line"], first["problem"]) == (1, None)
    assert second["line"] == 3 and "nothing to learn" in second["problem"]
    summary = last["summary"]
    assert summary["conversations"] == 2 and summary["problem_count"] == 2
    assert [re.search(r"line (\d+): ", problem)[1] for problem in summary["problems"]] == ["2", "3"]


def test_every_problem_is_counted(tmp_path, model):
    lines = ["{}"] * 30
    result = run(model, write(tmp_path, chat(USER, ANSWER), *lines), "--count", 0)
    assert result.exit_code == 1
    assert result.stdout.count("there are no messages") == 20
    assert "and 10 more" in result.stdout
    assert "<|start|>" not in result.stdout


def test_longer_than_the_context_is_a_problem(tmp_path):
    model = load_vocabulary("nano")
    assert model.context is not None
    card = json.loads((Path(ossia.nano.__file__).parent / "ossia.json").read_text())
    assert model.identity == card["model_identity"]
    path = write(tmp_path, chat(USER, {"role": "assistant", "content": "q7" * model.context}))
    result = run("nano", path)
    assert result.exit_code == 1
    assert f"more than the {model.context:,} that" in result.stdout
    assert card["model_identity"] in result.stdout.replace("·", "")
    assert f"1 longer than {model.context:,} tokens" in result.stdout


# -- What is refused ------------------------------------------------------------------------------


def refused(*arguments: str | Path) -> OssiaError:
    error = run(*arguments).exception
    assert isinstance(error, OssiaError), error
    return error


@pytest.mark.parametrize("spelling", ["<|call|>", "<|channel|>", "<|return|>", "<|constrain|>"])
def test_a_vocabulary_without_a_control_token(tmp_path, spelling):
    document = trained_tokenizer_json()
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] != spelling]
    document["model"]["vocab"].pop(spelling, None)
    path = write_tokenizer_json(tmp_path / "model", document)
    error = refused(tmp_path / "model", write(tmp_path, chat(USER, ANSWER)))
    assert isinstance(error, TokenizerError)
    assert str(path) in str(error) and spelling in str(error)


def test_a_vocabulary_of_another_model(tmp_path):
    """Control tokens beyond the embedding table."""
    random_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    document = trained_tokenizer_json(vocab_size=config["vocab_size"] + 700)
    path = write_tokenizer_json(tmp_path, document)
    error = refused(tmp_path, write(tmp_path, chat(USER, ANSWER)))
    assert isinstance(error, TokenizerError)
    assert str(path) in str(error) and f"below {config['vocab_size']}" in str(error)


def test_models_and_files_that_are_none(tmp_path, model):
    path = write(tmp_path, chat(USER, ANSWER))
    assert "no such folder" in str(refused(tmp_path / "absent", path))
    assert isinstance(refused(tmp_path, path), TokenizerError)  # a folder without a vocabulary
    for data in (tmp_path / "absent.jsonl", tmp_path):
        error = refused(model, data)
        assert isinstance(error, TrainingError) and str(data) in str(error)
    (tmp_path / "config.json").write_text("{}")
    write_tokenizer_json(tmp_path, trained_tokenizer_json())
    assert isinstance(refused(tmp_path, path), ConfigError)

"""`ossia eval`: its table, its files, its errors; with a scripted model in place of a real one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from evals.models import FINAL, AnsweringEngine, model
from ossia.cli import eval as command
from ossia.cli import options
from ossia.cli.main import run
from ossia.evals.tasks import nano_conduct

NANO = "I am nano. I cannot do that, I can only do sums."


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AnsweringEngine:
    """Loading gives a model that says the same to everything."""
    engine = AnsweringEngine(lambda _: FINAL.format(NANO))
    opened = SimpleNamespace(
        name="scripted",
        kernels=SimpleNamespace(name="none"),
        checkpoint=SimpleNamespace(folder=tmp_path, total_bytes=3),
    )
    monkeypatch.setattr(options.ModelOptions, "open", lambda self, **_: opened)
    monkeypatch.setattr(options, "load_model", lambda *_, **__: model(engine))
    monkeypatch.setattr("ossia.cli.doctor.settings_text", lambda _: "")
    return engine


def test_the_table(scripted: AnsweringEngine, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "nano", "--tasks", "sums,identity,other", "--count", "5"]
    assert run([*arguments, "--efforts", "low,high", "--seed", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "scripted" in lines[0] and "seed 7" in lines[0]
    rows = [line for line in lines if " of 5 " in line]
    assert len(rows) == 6
    assert rows[0].startswith("± up to 3 digits") and " low " in rows[0] and "0 of 5" in rows[0]
    assert rows[3].startswith("identity") and " high " in rows[3]
    # 5 of 5: Wilson's interval begins at 1 / (1 + z²/5) = 0.5655.
    assert "5 of 5" in rows[3] and "100.0%" in rows[3] and "56.6% – 100.0%" in rows[3]
    headings = [line for line in lines if line in ("arithmetic", "tools", "conduct")]
    assert headings == ["arithmetic", "conduct"]
    assert "Training may see 90.2% of all pairs" in lines[-1]


def test_failures_are_shown_with_the_question(
    scripted: AnsweringEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "nano", "--tasks", "sums", "--count", "4", "--efforts", "low"]
    assert run([*arguments, "--show-failures", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("expected:") == 2 and "no number in the answer" in out and NANO in out


def test_json_lines(scripted: AnsweringEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "nano", "--tasks", "identity", "--count", "3", "--json"]) == 0
    *scores, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(s["task"], s["effort"], s["right"], s["of"]) for s in scores] == [
        ("identity", effort, 3, 3) for effort in ("low", "medium", "high")
    ]
    assert summary["suite"] == "nano" and summary["interrupted"] is False
    assert summary["model"] == "scripted" and "scores" not in summary


def test_the_files_are_written(
    scripted: AnsweringEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    out = tmp_path / "results/of/today"
    arguments = ["eval", "nano", "--tasks", "other", "--count", "999", "--efforts", "medium"]
    assert run([*arguments, "--out", str(out)]) == 0
    values = json.loads((out / "eval.json").read_text())
    assert values["scores"][0]["of"] == len(nano_conduct.OUTSIDE)
    # SHA-256 of "abc": FIPS 180-2, appendix B.1.
    assert values["weights_sha256"].startswith("ba7816bf8f01cfea414140de5dae2223")
    assert (out / "eval.md").read_text().startswith("# scripted on the suite nano")
    assert "eval.png" in capsys.readouterr().err


def test_an_interrupt_prints_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
    scripted: AnsweringEngine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answer(_: str) -> str:
        if len(scripted.prompts) > 7:
            raise KeyboardInterrupt
        return FINAL.format(NANO)

    monkeypatch.setattr(scripted, "_answer", answer)
    arguments = ["eval", "nano", "--tasks", "identity", "--count", "5", "--batch", "1"]
    assert run([*arguments, "--out", str(tmp_path)]) == 130
    captured = capsys.readouterr()
    assert "5 of 5" in captured.out and "partial: 5 were to be asked" in captured.out
    assert "Interrupted" in captured.err and "partial" in captured.err
    assert json.loads((tmp_path / "eval.json").read_text())["interrupted"] is True


def test_an_interrupt_before_the_first_answer(
    monkeypatch: pytest.MonkeyPatch, scripted: AnsweringEngine, tmp_path: Path
) -> None:
    def answer(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(scripted, "_answer", answer)
    assert run(["eval", "nano", "--tasks", "identity", "--out", str(tmp_path)]) == 130
    assert not (tmp_path / "eval.json").exists()


def test_the_list_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "nano", "--list", "--model", "no/such-model"]) == 0
    out = capsys.readouterr().out
    assert "product_sum: a·b ± c" in out and "hierarchy" not in out.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mmlu"], 2, "SUITE must be one of nano; got 'mmlu'"),
        (["nano", "--tasks", "sums,algebra"], 2, "got 'algebra'"),
        (["nano", "--efforts", "low,extreme"], 2, "low, medium, high"),
        (["nano", "--efforts", ","], 2, "low, medium, high"),
        (["nano", "--count", "0"], 2, "--count must be 1 or more; got 0"),
        (["nano", "--batch", "0"], 2, "--batch must be 1 or more; got 0"),
        (["nano", "--model", "no/such-model-anywhere"], 1, "ossia pull"),
        (["nano", "--kernels", "abacus"], 2, "auto, native, reference, torch"),
    ],
)
def test_wrong_inputs(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", *arguments]) == code
    captured = capsys.readouterr()
    assert words in " ".join(captured.err.split()) and captured.out == ""


def test_out_must_be_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_text("")
    assert run(["eval", "nano", "--out", str(path)]) == 2
    assert "is a file" in capsys.readouterr().err


def test_the_progress_line_says_how_long_it_will_take(capsys: pytest.CaptureFixture[str]) -> None:
    from ossia.evals.run import Progress
    from ossia.evals.tasks import find_suite
    from ossia.harmony.messages import Effort

    line = command._ProgressLine()
    line._every = 0.0
    (task,) = find_suite("nano").select(["sums"])
    line.show(Progress(task, Effort.LOW, done=50, total=150, tokens=9000, seconds=10.0))
    err = capsys.readouterr().err
    assert "50 of 150 examples, 5.0 a second, 900 tokens/s, about 20 s left" in err

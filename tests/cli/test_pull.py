"""`ossia pull` against a hub on loopback; what it does in detail is tested in model/test_hub.py."""

import json

import pytest

from checkpoints import random_checkpoint
from fake_hub import COMMIT, isolate, serving
from ossia.cli.main import run

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    isolate(monkeypatch, tmp_path / "hf")
    folder = random_checkpoint(tmp_path / "source")
    with serving({path.name: path.read_bytes() for path in folder.iterdir()}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        yield hub


def test_prints_the_folder_and_inspect_takes_the_name(hub, tmp_path, capsys):
    assert run(["pull", hub.name]) == 0
    captured = capsys.readouterr()
    expected = tmp_path / "hf" / "hub" / "models--someone--tiny" / "snapshots" / COMMIT
    assert captured.out == f"{expected}\n"
    assert captured.err == ""
    assert run(["inspect", hub.name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(expected)


def test_shows_progress_on_a_terminal(hub, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert run(["pull", hub.name]) == 0
    assert hub.name in capsys.readouterr().err


def test_a_revision(hub, capsys):
    assert run(["pull", hub.name, "--revision", "v2"]) == 0
    capsys.readouterr()
    assert run(["inspect", f"{hub.name}@v2", "--json"]) == 0


def test_a_model_that_is_broken_on_the_hub(hub, capsys):
    hub.files["model.safetensors"] = hub.files["model.safetensors"][:-4]
    assert run(["pull", hub.name]) == 1
    assert "truncated" in capsys.readouterr().err


def test_failures_are_one_sentence(hub, capsys):
    assert run(["pull", "someone/else"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: someone/else: ") and error.count("\n") == 1

"""Which runs the README's table is made of, and that the check sees an edit; the result files are
made by hand.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta

import pytest
import readme_table

README = f"# Title\n\n{readme_table._BEGIN}\n{readme_table._END}\n\nThe rest.\n"
MACHINE = {
    "processor": "Abacus 9",
    "cores": 4,
    "features": ["avx2", "fma"],
    "memory": {"total": 8 << 30},
}
FIRST = datetime(2031, 2, 3, 23, 30, tzinfo=UTC)


class Place:
    """A folder of results and a README."""

    def __init__(self, folder, monkeypatch):
        self.results, self.readme = folder / "results", folder / "README.md"
        self.results.mkdir()
        self.readme.write_text(README)
        self._monkeypatch, self._runs = monkeypatch, 0

    def add(self, prefill=None, decode=None, *, options="--rounds 1", **changes):
        """A run a day after the last. Seconds of 512 tokens of prompt, of 4 decoded ones: for each
        engine, or for Ossia alone.
        """
        self._runs += 1
        samples = []
        for kind, seconds in (("prefill", prefill), ("decode", decode)):
            made = {"prefill": {"tokens": 512}}.get(kind) or {"depth": 0, "sequences": 1}
            made |= {"kind": kind, "round": 0, "read_gb_per_s": 51.296}
            for engine, value in zip(("ossia", "llama.cpp"), seconds or (), strict=False):
                samples.append({"tokens": 4} | made | {"engine": engine, "seconds": value})
        for engine, version in (("ossia", "1.2"), ("llama.cpp", "llama-cpp-python 3.4")):
            engine = {"engine": engine, "kind": "engine", "round": 0, "version": version}
            samples.append(engine)
        values = {
            "date": (FIRST + timedelta(days=self._runs)).isoformat(),
            "commit": f"{self._runs:040x}"[::-1],
            "changed_files": 0,
            "command": f"python benchmarks/peers.py --folder models {options}",
            "machine": MACHINE,
            "model": {"shape": "20b", "layers": 24},
            "samples": samples,
        } | changes
        # The name does not say which is the newest.
        path = self.results / f"peers-{99 - self._runs}.json"
        path.write_text(json.dumps(values))
        return path

    def run(self, *words):
        where = ("--results", str(self.results), "--readme", str(self.readme))
        self._monkeypatch.setattr(sys, "argv", ["readme_table.py", *where, *words])
        return readme_table.main()

    def rows(self):
        """name → its other cells."""
        lines = re.findall(r"^\| (.*) \|$", self.readme.read_text(), re.MULTILINE)[2:]
        cells = [[cell.strip() for cell in line.split("|")] for line in lines]
        return {name: rest for name, *rest in cells}


@pytest.fixture
def place(tmp_path, monkeypatch):
    return Place(tmp_path, monkeypatch)


def test_one_run_is_a_table_with_its_machine_and_command(place, capsys):
    place.add(prefill=(2.0, 8.0), decode=(0.4, 0.8))
    assert place.run() == 0
    # 2.565 GB a token at 10 tokens/s are half of the 51.3 GB/s.
    assert place.rows() == {
        "prefill 512, tokens/s": ["256.0", "64.0", "4.00", "–"],
        "decode at depth 0, tokens/s": ["10.0", "5.0", "2.00", "50 % of 51.3 GB/s"],
    }
    text = place.readme.read_text()
    assert text.startswith("# Title\n\n<!--")
    assert text.endswith("-->\n\nThe rest.\n")
    assert "Abacus 9, 4 cores (avx2, fma), 8.0 GiB" in text
    command = "`python benchmarks/peers.py --folder models --rounds 1`"
    versions = "Ossia 1.2 (10000000) and llama-cpp-python 3.4"
    assert f"Measured 2031-02-04, 1 round, {versions}: {command}." in text
    assert place.run("--check") == 0
    assert place.run() == 0
    assert place.readme.read_text() == text
    assert capsys.readouterr() == ("", "")


def test_each_row_is_of_the_newest_run_that_has_it(place):
    place.add(prefill=(1.0, 1.0), decode=(4.0, 4.0))
    place.add(prefill=(2.0, 8.0), decode=(4.0, 4.0))
    place.add(decode=(0.4, 0.8), changed_files=2)
    place.add(prefill=(0.1,))  # of one engine only
    assert place.run() == 0
    assert place.rows() == {
        "prefill 512, tokens/s": ["256.0", "64.0", "4.00", "–", "2"],
        "decode at depth 0, tokens/s": ["10.0", "5.0", "2.00", "50 % of 51.3 GB/s", "1"],
    }
    runs = re.findall(r"^(\d\. \S+, 1 round, .*?) and", place.readme.read_text(), re.MULTILINE)
    assert runs == [
        "1. 2031-02-06, 1 round, Ossia 1.2 (30000000, changed)",
        "2. 2031-02-05, 1 round, Ossia 1.2 (20000000)",
    ]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"options": "--threads 2"}, "it was run with --threads"),
        ({"options": "--llama-no-repack"}, "it was run with --llama-no-repack"),
        ({"model": {"shape": "20b", "layers": 2}}, "it measured 2 layers of 20b"),
        ({"model": {"shape": "120b", "layers": 36}}, "it measured 36 layers of 120b"),
        ({"prefill": (0.1,)}, "it measured no row on both engines"),
    ],
    ids=str,
)
def test_what_answers_another_question_is_left_out_and_named(place, capsys, changes, why):
    place.add(prefill=(2.0, 8.0), options="--threads 4 --chunk 512")  # as they come, though typed
    path = place.add(**{"prefill": (0.1, 0.1)} | changes)
    assert place.run() == 0
    assert capsys.readouterr().out == f"{path.name}: left out, for {why}.\n"
    assert place.rows() == {"prefill 512, tokens/s": ["256.0", "64.0", "4.00", "–"]}


def test_machines_are_not_mixed(place, capsys):
    older = place.add(decode=(0.1, 0.1), machine=MACHINE | {"processor": "Abacus 8"})
    place.add(prefill=(2.0, 8.0))
    place.add(prefill=(0.1, 0.1), options="--threads 2", machine=MACHINE | {"cores": 96})
    assert place.run() == 0
    assert list(place.rows()) == ["prefill 512, tokens/s"]
    assert f"{older.name}: left out, for another machine" in capsys.readouterr().out


def test_the_check_sees_an_edit_and_a_new_run(place, capsys):
    place.add(prefill=(2.0, 8.0))
    for change in (
        lambda: None,  # as it came, without a table
        lambda: place.readme.write_text(place.readme.read_text().replace("256.0", "257.0")),
        lambda: place.add(decode=(0.4, 0.8)),
    ):
        change()
        before = place.readme.read_text()
        assert place.run("--check") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(r"README.md: .* run python benchmarks/readme_table.py\.$", line)
        assert place.readme.read_text() == before
        assert place.run() == 0
        assert place.run("--check") == 0


def test_what_it_cannot_work_with_is_one_sentence(place, capsys):
    def told():
        assert place.run() == 1
        printed = capsys.readouterr()
        (line,) = printed.err.splitlines()
        assert printed.out == ""
        return line

    assert "no run of both engines is there. Run benchmarks/peers.py" in told()
    good = place.add(prefill=(2.0, 8.0))
    for text in ("{", "[]", '{"date": "2031-02-03"}', good.read_text().replace("20b", "7b")):
        broken = place.results / "peers-broken.json"
        broken.write_text(text)
        assert "peers-broken.json: no result of benchmarks/peers.py" in told()
    broken.unlink()
    place.readme.write_text("no markers\n")
    assert "README.md must hold the lines" in told()
    place.readme.unlink()
    assert "README.md" in told()

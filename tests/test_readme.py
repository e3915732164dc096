"""What README.md shows runs as shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    reasoning, answer = done.stdout.split("\n---\n")
    assert reasoning.strip() and answer.strip()


def test_the_commands_it_names_exist() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ossia.cli.main", "--help"], capture_output=True, text=True
    )
    named = set(re.findall(r"^\| `ossia (\w+)", README, re.MULTILINE))
    expected = {
        "chat",
        "generate",
        "pull",
        "inspect",
        "harmony",
        "train",
        "eval",
        "doctor",
        "bench",
    }
    assert named == expected
    assert all(re.search(rf"\b{name}\b", done.stdout) for name in named)


def test_the_files_it_links_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link

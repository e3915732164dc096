"""Checks of the repository that no linter makes: sizes, names, versions, literal token ids.

    python scripts/check_repository.py

Prints one line per finding and exits 1 if there is any.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 70

# Longer than the bounds for a good cause, which is named here.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {
    "src/ossia/cli/chat.py:chat": "its length is that of the list of options",
    "src/ossia/cli/generate.py:generate": "its length is that of the list of options",
    "csrc/bindings.cc:RegisterContext": "its length is that of the list of methods",
}

# Ids of o200k_harmony's control tokens: allowed where the vocabulary is defined and nowhere else.
TOKEN_ID = re.compile(r"\b(19999[89]|2000[01]\d|201088)\b")
TOKEN_ID_HOME = "src/ossia/harmony/tokenizer.py"

MACHINE_TRACES = re.compile(
    r"/work/|/root/|https?://(pypi\.org|files\.pythonhosted|registry\.npmjs)"
)


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.splitlines() if (ROOT / name).is_file()]


def check_sizes() -> Iterator[str]:
    for path in tracked("src/*.py", "tests/*.py", "benchmarks/*.py", "scripts/*", "csrc/*"):
        name = str(path.relative_to(ROOT))
        text = path.read_text()
        lines = text.count("\n")
        if lines > MAX_FILE_LINES and name not in LONG_FILES:
            yield f"{name}: {lines} lines; split it (at most {MAX_FILE_LINES})"
        functions = {".py": python_functions, ".h": cpp_functions, ".cc": cpp_functions}
        for function, length in functions.get(path.suffix, lambda _: ())(text):
            where = f"{name}:{function}"
            if length > MAX_FUNCTION_LINES and where not in LONG_FUNCTIONS:
                yield f"{where}: {length} lines; split it (at most {MAX_FUNCTION_LINES})"


def python_functions(text: str) -> Iterator[tuple[str, int]]:
    """Name and number of lines of each."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def cpp_functions(text: str) -> Iterator[tuple[str, int]]:
    """Likewise. clang-format indents all of a function but its first line and the brace that ends
    it; classes end with "};", namespaces with a comment.
    """
    start, signature = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line == "}":
            name = re.search(r"([\w~]+)\(", signature)
            yield name[1] if name else signature, number - start + 1
        elif re.match(r"\w", line):
            start, signature = number, line


def check_names() -> Iterator[str]:
    for path in tracked("src", "tests", "csrc"):
        if re.search(r"\butils?\b|\bhelpers?\b|\bmisc\b", path.stem):
            yield f"{path.relative_to(ROOT)}: name a file after what it does"


def check_token_ids() -> Iterator[str]:
    for path in tracked("src/*.py"):
        name = str(path.relative_to(ROOT))
        if name == TOKEN_ID_HOME:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if TOKEN_ID.search(line):
                yield f"{name}:{number}: a literal token id; take it from Tokenizer.control"


def check_versions() -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    source = re.search(r'__version__ = "(.+)"', (ROOT / "src/ossia/__init__.py").read_text())
    changelog = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    found = {
        "pyproject.toml": project,
        "ossia.__version__": source and source[1],
        "CHANGELOG.md": changelog and changelog[1],
    }
    if len(set(found.values())) != 1:
        yield f"versions differ: {found}"


def check_machine_traces() -> Iterator[str]:
    for path in tracked():
        if path.suffix in {".safetensors", ".png"} or path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if MACHINE_TRACES.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: names a path or host of one machine"


def check_readme_tree() -> Iterator[str]:
    readme = (ROOT / "README.md").read_text()
    for path in sorted((ROOT / "src/ossia").iterdir()):
        if path.is_dir() and path.name != "__pycache__" and f"{path.name}/" not in readme:
            yield f"README.md: its tree lacks src/ossia/{path.name}/"


def main() -> int:
    checks = (
        check_sizes,
        check_names,
        check_token_ids,
        check_versions,
        check_machine_traces,
        check_readme_tree,
    )
    findings = [finding for check in checks for finding in check()]
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

"""The C++ sources built in other ways than for use: without a compiler, for another processor, with
sanitizers. `ossia_digest` (csrc/tests) runs every op without Python and prints what came out.

What is built is kept in build/tests, so that only what changed is compiled again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_native = pytest.importorskip("ossia.kernels._native")

ROOT = Path(__file__).resolve().parent.parent.parent
SETS = _native.instruction_sets()
# cmake and ninja of the environment before those of the system.
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
HANGS, SANITIZED = 100, 350
"""Seconds after which a test with the sanitized extension hangs, and all of them together do: below
the 600 of any test here, whose building comes first."""
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def run(*command: str | Path, timeout: float = 500, **environment: str) -> str:
    """What it prints. Fails with what it said where it fails or takes longer than `timeout` s."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            env={**os.environ, "PATH": PATH, **environment},
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        said = _end(late.stdout) + _end(late.stderr)
        pytest.fail(f"{command[0]} was not done after {timeout:g} s; it said so far: {said}")
    assert done.returncode == 0, f"{command[0]}: {_end(done.stdout) + _end(done.stderr)}"
    return done.stdout.decode()


def _end(said: bytes | None) -> str:
    return (said or b"").decode(errors="replace")[-16_000:]  # stacks of several threads are long


def built(name: str, *options: str, target: str = "ossia_digest") -> Path:
    """A folder with `ossia_digest`, or with the extension, built with these options."""
    folder = ROOT / "build" / "tests" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test of another worker may want the same
        configure = ("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *options)
        run(*configure, "-DOSSIA_BUILD_TESTS=ON", f"-DPython_EXECUTABLE={sys.executable}")
        run("cmake", "--build", folder, "--parallel", "1", "--target", target)
    return folder


def digests(text: str) -> dict[str, str]:
    """name → digest. Lines that name another must show the digest of that one."""
    lines = [line.split() for line in text.splitlines()]
    found = {words[0]: words[1] for words in lines}
    for words in lines:
        if len(words) > 2:
            assert words[2] == "=" and found[words[3]] == words[1], " ".join(words)
    assert len(found) == len(lines) > 20
    return found


def test_without_a_compiler_nothing_is_built_and_nothing_fails(tmp_path):
    """Neither where CXX names none, nor where no directory on the path holds one."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("cmake", "ninja"):
        found = shutil.which(tool, path=PATH)
        assert found, f"{tool} is not installed"
        (tools / tool).symlink_to(found)
    ways = {"named": {"CXX": "/nowhere/c++"}, "path": {"PATH": str(tools), "CXX": ""}}
    for way, environment in ways.items():
        folder, prefix = tmp_path / way, tmp_path / f"{way}-installed"
        configured = subprocess.run(
            ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja"],
            env=os.environ | {"PATH": PATH} | environment,
            executable=tools / "cmake",
            capture_output=True,
            text=True,
            check=False,
        )
        assert configured.returncode == 0, configured.stderr
        assert "installed without its native kernels" in configured.stderr
        run("cmake", "--build", folder)
        run("cmake", "--install", folder, "--prefix", prefix)
        assert not list(prefix.rglob("*"))


@pytest.mark.slow
def test_an_install_without_a_compiler_works(tmp_path):
    """`pip install .` succeeds, says so, and everything runs on `reference`."""
    venv, log = tmp_path / "venv", tmp_path / "log"
    run(sys.executable, "-m", "venv", venv)
    install = (venv / "bin" / "python", "-m", "pip", "install", "-c", ROOT / "constraints.txt")
    build = f"--config-settings=build-dir={tmp_path / 'build'}"
    run(*install, "--verbose", "--log", log, build, ROOT, CXX="/nowhere/c++")
    assert "installed without its native kernels" in log.read_text()
    assert not list(venv.rglob("_native*.so"))
    code = "from ossia.kernels.choose import *; print(choose_kernels()[0].name)"
    assert run(venv / "bin" / "python", "-c", code).strip() == "reference"
    told = run(venv / "bin" / "ossia", "doctor")
    assert "native, not installed" in told
    assert "reference is used: the native kernels were not built" in told
    assert "Nothing is wrong." in told


@pytest.mark.slow
def test_every_instruction_set_prints_the_same():
    program = built("plain") / "ossia_digest"
    for seed in ("1", "2"):
        expected = digests(run(program, "scalar", seed, "1"))
        for name in SETS:
            for threads in ("1", "2"):
                assert digests(run(program, name, seed, threads)) == expected
    first = digests(run(program, "auto", "1"))
    constant = {name for name, digest in expected.items() if first[name] == digest}
    assert constant == {"dot_peak"}  # all others depend on what they were given


@pytest.mark.slow
def test_another_processor_prints_the_same():
    if not (shutil.which(CROSS) and shutil.which(EMULATOR)):
        pytest.skip("no cross compiler for aarch64, or no emulator")
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    cross = (*system, f"-DCMAKE_CXX_COMPILER={CROSS}", "-DOSSIA_BUILD_PYTHON=OFF")
    program = built("aarch64", *cross) / "ossia_digest"
    actual = run(EMULATOR, "-L", "/usr/aarch64-linux-gnu", program, "auto", "1", "2")
    expected = run(built("plain") / "ossia_digest", "auto", "1", "2")
    assert digests(actual) == digests(expected)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_sanitizers_find_nothing(sanitizers):
    folder = built(sanitizers, f"-DOSSIA_SANITIZE={sanitizers}")
    expected = digests(run(built("plain") / "ossia_digest", "auto", "1", "2"))
    for name in SETS:
        assert digests(run(folder / "ossia_digest", name, "1", "2")) == expected


def test_a_command_that_hangs_tells_what_it_said():
    code = "import sys, time; print('one', flush=True); sys.stderr.write('two'); time.sleep(60)"
    with pytest.raises(pytest.fail.Exception, match=r"not done after 2 s; .*one\ntwo$"):
        run(sys.executable, "-c", code, timeout=2)
    with pytest.raises(AssertionError, match=r"one\s+two\n"):
        run(sys.executable, "-c", code.replace("time.sleep(60)", "sys.exit(3)"))


# Puts another build of the extension in the place of the installed one and runs tests with it.
WITH_EXTENSION = """
import importlib.util, sys
import ossia.kernels
spec = importlib.util.spec_from_file_location("ossia.kernels._native", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules[spec.name] = ossia.kernels._native = module
import pytest
code = pytest.main(sys.argv[2:])
from ossia.kernels import native
assert native._native is module
sys.exit(code)
"""


@pytest.mark.slow
def test_the_extension_under_the_address_sanitizer():
    """The tests of products, ops, limits and sampling once more, in a Python that has it loaded."""
    name = "address,undefined"
    folder = built(name, f"-DOSSIA_SANITIZE={name}", target="_native")
    (extension,) = folder.glob("_native*.so")
    libraries = [run("c++", f"-print-file-name=lib{name}.so").strip() for name in ("asan", "ubsan")]
    names = ("products", "limits", "sampling")
    files = [ROOT / f"tests/kernels/test_native_{name}.py" for name in names]
    files.append(ROOT / "tests/kernels/test_native.py")
    # Not the slowest; and no processes that would have to load the sanitizer first.
    chosen = "not whole_vocabulary and not fork"
    # Should one of them hang, its name and the stack of every thread are told.
    told = ("-v", "-o", f"faulthandler_timeout={HANGS}")
    pytest_options = (*told, "-p", "no:cacheprovider", "-m", "not slow", "-k", chosen)
    text = run(
        *(sys.executable, "-u", "-c", WITH_EXTENSION, extension, *pytest_options, *files),
        timeout=SANITIZED,
        LD_PRELOAD=" ".join(libraries),
        ASAN_OPTIONS="detect_leaks=0",  # Python frees little at its end
        PYTHONPATH=os.pathsep.join(filter(None, sys.path)),
    )
    assert " passed" in text

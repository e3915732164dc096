"""The hand-written stub of `_native` against what the extension itself says it offers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ossia.kernels

native = pytest.importorskip("ossia.kernels._native")

STUB = Path(ossia.kernels.__file__).with_name("_native.pyi")


def offered(text: str) -> dict[str, list[str]]:
    """Every name of a stub → its arguments: "*" before keyword-only, "=" behind optional ones."""
    found: dict[str, list[str]] = {}
    body = ast.parse(text).body
    nodes = [("", node) for node in body]
    nodes += [(f"{c.name}.", n) for c in body if isinstance(c, ast.ClassDef) for n in c.body]
    for scope, node in nodes:
        if isinstance(node, ast.FunctionDef):
            found[scope + node.name] = arguments(node)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = []
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = []
    return {name: args for name, args in found.items() if not name.startswith("_")}


def arguments(node: ast.FunctionDef) -> list[str]:
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    first_optional = len(plain) - len(given.defaults)
    # A positional-only argument has no name that a caller could use.
    names = ["/" if arg in given.posonlyargs else arg.arg for arg in plain]
    names = [n + "=" if i >= first_optional else n for i, n in enumerate(names)]
    keywords = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return [*names, *("*" + a.arg + ("=" if d is not None else "") for a, d in keywords)]


def test_the_stub_offers_what_the_extension_does():
    from nanobind.stubgen import StubGen

    generated = StubGen(native)
    generated.put(native)
    assert offered(STUB.read_text()) == offered(generated.get())

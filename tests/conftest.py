"""Shared pytest behaviour: in CI a skip whose reason is not listed here fails the run."""

from __future__ import annotations

import os
import re

import pytest

# Pattern of the reason → why a run may lack it. In CI everything is installed by the scripts, so
# the list is for what a machine cannot have.
ALLOWED_SKIPS = {
    r"no CUDA device": "CI has no GPU",
    r"no cross compiler for aarch64": ".ci/run installs it where it is root and apt works",
}

_unexpected: list[str] = []


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(re.search(pattern, reason) for pattern in ALLOWED_SKIPS):
        _unexpected.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unexpected and os.environ.get("CI") and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _unexpected and os.environ.get("CI"):
        terminalreporter.section("skips that CI does not allow")
        for line in _unexpected:
            terminalreporter.write_line(line)

"""What an evaluation is made of: a suite of tasks, each drawing examples by seed, each example a
conversation to be answered and a grader of the answer.

An example knows no model: the identity, the effort and the date of its system message come from the
`Setting` in which it is asked. An example of two turns (a call, then its result) goes on from what
the model itself did in the first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ossia.agent.events import Turn
from ossia.errors import UsageError
from ossia.harmony.messages import (
    Conversation,
    Effort,
    Message,
    Role,
    SystemContent,
    ToolNamespace,
)

DATE = "2026-01-01"
"""The `Current date` of every example: a changing one would change the prompts."""


@dataclass(frozen=True)
class Grade:
    right: bool
    why: str = ""
    """What is wrong, in a few words; empty for a right answer."""


RIGHT = Grade(True)


def wrong(why: str) -> Grade:
    return Grade(False, why)


@dataclass(frozen=True)
class Setting:
    """What all examples of a run share."""

    effort: Effort = Effort.MEDIUM
    model_identity: str | None = None
    """The identity line of the system message; None leaves it out."""
    date: str = DATE


@dataclass(frozen=True)
class Example:
    """One thing asked, with nothing in it that depends on the model."""

    messages: tuple[Message, ...]
    """What follows the system message."""
    grade: Callable[[Turn], Grade]
    """Of the last turn."""
    expected: str
    """For people to read: the right answer, or what makes one right."""
    variant: str = ""
    """Which kind of the task's examples this is; scores are also given by it."""
    system_instructions: str | None = None
    """Follows the identity line in the system message."""
    system_tools: tuple[ToolNamespace, ...] = ()
    proceed: Callable[[Turn], tuple[Message, ...]] | None = None
    """For an example of two turns: the messages from the model's first turn to its second, made of
    what the model did in the first."""

    def conversation(self, setting: Setting) -> Conversation:
        """The prompt of the first turn; its system message is as `LLM.chat` writes it."""
        lines = (setting.model_identity, self.system_instructions)
        content = SystemContent(
            model_identity=" ".join(line for line in lines if line) or None,
            reasoning_effort=setting.effort,
            conversation_start_date=setting.date,
            tools=self.system_tools,
        )
        return Conversation((Message(Role.SYSTEM, (content,)), *self.messages))


@dataclass(frozen=True)
class Task:
    """A skill, and how to draw examples of it."""

    name: str
    """As `--tasks` takes it."""
    group: str
    """Heading in the table."""
    skill: str
    """Row of the table."""
    description: str
    """What is asked, and what counts as right; one sentence."""
    draw: Callable[[random.Random, int], Sequence[Example]]
    """At most so many different examples."""
    note: Callable[[], str] | None = None
    """A sentence that must stand beside the figures; computed only when they are printed."""

    def examples(self, count: int, seed: int) -> list[Example]:
        """`count` examples, or as many as there are different ones; the same for the same seed."""
        if count < 1:
            raise UsageError(f"--count must be 1 or more; got {count}.")
        return list(self.draw(random.Random(f"{seed}:{self.name}"), count))


@dataclass(frozen=True)
class Suite:
    """Tasks that are asked of one kind of model."""

    name: str
    description: str
    tasks: tuple[Task, ...]

    def select(self, names: Sequence[str]) -> tuple[Task, ...]:
        """The tasks of these names, in the suite's order; all for none. Raises UsageError."""
        known = [task.name for task in self.tasks]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UsageError(
                f"--tasks takes names of the suite {self.name}, separated by commas "
                f"({', '.join(known)}); got {unknown[0]!r}."
            )
        return tuple(task for task in self.tasks if not names or task.name in names)

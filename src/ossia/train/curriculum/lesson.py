"""What a lesson is, and the messages that stand before it: system messages of all the kinds that
the shipped model will meet, from none at all to the one that `ossia chat` writes."""

from __future__ import annotations

import datetime
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ossia.harmony.messages import (
    Channel,
    Conversation,
    DeveloperContent,
    Effort,
    Message,
    Role,
    SystemContent,
    ToolNamespace,
)

IDENTITY = "You are nano, the tiny model built into Ossia."
"""nano's line in the system message; `ossia.json` of the shipped model carries it."""


class Skill(StrEnum):
    """What a lesson exercises; recipes mix lessons by these names."""

    SUM = "sum"
    """a ± b, up to three digits."""
    PRODUCT = "product"
    """a × b, up to two digits."""
    PRODUCT_SUM = "product_sum"
    """a × b ± c."""
    TALK = "talk"
    """Greetings, who it is, what it can do, and saying so when asked for something else."""
    REFUSAL = "refusal"
    """Requests that a short policy forbids."""
    HIERARCHY = "hierarchy"
    """Instructions of system, developer and user that contradict each other."""
    CALL = "call"
    """A function that is offered, called with the user's arguments."""
    RESULT = "result"
    """The answer from a tool's result."""
    PYTHON = "python"
    """The Python tool, used where it is offered."""
    SHAPE = "shape"
    """JSON of a requested shape."""


@dataclass(frozen=True)
class Lesson:
    """A conversation whose last turn, the assistant's, is to be learnt."""

    skill: Skill
    conversation: Conversation


@dataclass(frozen=True)
class Setting:
    """How a lesson is set; drawn once per lesson, and handed to whatever writes it."""

    effort: Effort = Effort.MEDIUM
    full_system: bool = True
    """The whole system message that `ossia chat` writes; else one of a line or two."""


EFFORTS: Mapping[Skill, tuple[int, int, int]] = {
    Skill.SUM: (28, 36, 36),
    Skill.PRODUCT: (22, 39, 39),
    Skill.PRODUCT_SUM: (22, 39, 39),
    Skill.TALK: (24, 38, 38),
    Skill.REFUSAL: (24, 38, 38),
    Skill.HIERARCHY: (32, 36, 32),
    Skill.CALL: (42, 34, 24),
    Skill.RESULT: (40, 34, 26),
    Skill.PYTHON: (34, 33, 33),
    Skill.SHAPE: (45, 33, 22),
}
"""Shares of low, medium and high. Where nothing but the effort decides whether a thought comes
first, low has a little more; where the working is the skill, or several turns at low effort are
learnt at once, less."""


def draw_setting(rng: random.Random, *, skill: Skill, full_system: float) -> Setting:
    """`full_system` is the share of whole system messages; early stages train mostly without
    them."""
    (effort,) = rng.choices((Effort.LOW, Effort.MEDIUM, Effort.HIGH), EFFORTS[skill])
    return Setting(effort, rng.random() < full_system)


def system_message(
    rng: random.Random,
    setting: Setting,
    *,
    tools: Sequence[ToolNamespace] = (),
    instructions: str | None = None,
) -> Message:
    """A system message with the effort of the setting; `instructions` follow the identity line.

    A whole one is nano's own three times out of four; in the others the identity is another's or
    the date is missing, as clients send them.
    """
    draw = rng.random()
    identity = None if draw < 0.08 else SystemContent().model_identity if draw < 0.2 else IDENTITY
    if instructions is not None:
        identity = instructions if identity is None else f"{identity} {instructions}"
    if not setting.full_system:
        content = SystemContent(
            model_identity=identity if instructions or rng.random() < 0.3 else None,
            reasoning_effort=setting.effort,
            knowledge_cutoff=None,
            valid_channels=None,
            tools=tuple(tools),
        )
        return Message(Role.SYSTEM, (content,))
    date = datetime.date(2024, 7, 1) + datetime.timedelta(days=rng.randrange(365 * 12))
    content = SystemContent(
        model_identity=identity,
        reasoning_effort=setting.effort,
        conversation_start_date=None if rng.random() < 0.08 else date.isoformat(),
        tools=tuple(tools),
    )
    return Message(Role.SYSTEM, (content,))


def developer_message(
    instructions: str | None, tools: Sequence[ToolNamespace] = (), **options: object
) -> Message:
    """A developer message; `options` are further fields of DeveloperContent."""
    content = DeveloperContent(instructions, tuple(tools), **options)  # type: ignore[arg-type]
    return Message(Role.DEVELOPER, (content,))


def user(text: str) -> Message:
    return Message.of_text(Role.USER, text)


def analysis(text: str) -> Message:
    return Message.of_text(Role.ASSISTANT, text, channel=Channel.ANALYSIS)


def final(text: str) -> Message:
    return Message.of_text(Role.ASSISTANT, text, channel=Channel.FINAL)


def function_call(name: str, arguments: str) -> Message:
    """`arguments` as JSON; in the channel and with the content type that the models were trained
    to write."""
    return Message.of_text(
        Role.ASSISTANT,
        arguments,
        channel=Channel.COMMENTARY,
        recipient=f"functions.{name}",
        content_type="<|constrain|>json",
    )


def python_call(code: str) -> Message:
    """Raw code to the Python tool, from the analysis."""
    return Message.of_text(
        Role.ASSISTANT, code, channel=Channel.ANALYSIS, recipient="python", content_type="code"
    )


def tool_result(call: Message, output: str) -> Message:
    """The output of a call, on the channel of the call."""
    return Message.of_text(
        Role.TOOL, output, name=call.recipient, recipient="assistant", channel=call.channel
    )

"""Text on which the numerics of a model are measured: for the built-in nano, lessons of the kind it
was trained on, for it knows nothing else; for every other model one conversation, given below.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ossia.harmony.tokenizer import Tokenizer

_LESSONS = 16
_SEED = 20_260_101  # of the lessons; training drew its own from other seeds


@dataclass(frozen=True)
class Passage:
    name: str
    documents: tuple[tuple[int, ...], ...]
    """Token ids."""
    counted: tuple[tuple[bool, ...], ...] | None = None
    """For each token whether what follows it is the model's to write; None = all. nano was never
    taught what users say, so that its guesses at that are ties, which any rounding turns."""


def passage_for(model: str, tokenizer: Tokenizer) -> Passage:
    """What the model called `model` is measured on."""
    from ossia.harmony.messages import (
        Channel,
        Conversation,
        DeveloperContent,
        Message,
        Role,
        SystemContent,
    )
    from ossia.harmony.render import render_for_training

    if model == "nano":
        from ossia.train.curriculum.lesson import Lesson
        from ossia.train.curriculum.lessons import stream
        from ossia.train.recipe import load_recipe

        last = load_recipe("nano").quantize
        drawn = stream(random.Random(_SEED), last.mix, full_system=last.full_system)
        lessons = (item for item in drawn if isinstance(item, Lesson))
        examples = [
            render_for_training(tokenizer, lesson.conversation)
            for lesson in itertools.islice(lessons, _LESSONS)
        ]
        return Passage(
            f"the answers of {_LESSONS} lessons of its kind",
            tuple(example.token_ids for example in examples),
            tuple((*(w > 0 for w in e.loss_weights[1:]), False) for e in examples),
        )
    conversation = Conversation(
        (
            Message(Role.SYSTEM, (SystemContent(conversation_start_date="2026-01-01"),)),
            Message(Role.DEVELOPER, (DeveloperContent("Answer in full sentences."),)),
            Message.of_text(Role.USER, _QUESTION),
            Message.of_text(Role.ASSISTANT, _ANALYSIS, channel=Channel.ANALYSIS),
            Message.of_text(Role.ASSISTANT, _ANSWER, channel=Channel.FINAL),
        )
    )
    rendered = render_for_training(tokenizer, conversation).token_ids
    return Passage("a conversation of ours", (rendered,))


_QUESTION = """\
A rope that weighs 120 g per metre hangs over the edge of a table, 1.5 m of it on the table and
0.5 m over the edge. How much work does it take to pull the hanging part back up? And could you show
me how to compute that in Python for any length?"""

_ANALYSIS = """\
The hanging part has a mass of 0.12 kg/m times 0.5 m, which is 0.06 kg. Its centre of mass lies
0.25 m below the table, so the work is m g h = 0.06 * 9.81 * 0.25 = 0.147 J. The user also wants a
function of the length: mass per metre times length squared over two times g. Friction is not
mentioned, so I leave it out and say so."""

_ANSWER = """\
It takes about **0.15 J**, if friction on the table is neglected.

Every piece of the hanging rope has to be raised by its own depth below the edge. On average that is
half of the hanging length, so the whole part can be treated as one mass at its centre:

    def work(length, mass_per_metre=0.12, g=9.81):
        \"\"\"Joules needed to pull up a rope that hangs down by `length` metres.\"\"\"
        return mass_per_metre * length * g * length / 2

    print(round(work(0.5), 3))  # 0.147

Note that the length appears twice: if twice as much rope hangs over the edge, it takes four times
the work. In German one would say "doppelte Länge, vierfache Arbeit"."""

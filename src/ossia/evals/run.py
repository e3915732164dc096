"""Asks a model the examples of tasks, greedily and in batches, and grades its turns.

Everything goes through `LLM.achat`, as `ossia chat` does, without a grammar: what is right is the
model's own doing. Scores come one by one, so that an interrupted run keeps what it has; a turn cut
by length is never right, whatever it says so far.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ossia.agent.events import Turn, TurnFinish
from ossia.engine.request import SamplingParams
from ossia.errors import EngineError, RequestError, UsageError
from ossia.evals.task import Example, Grade, Setting, Task, wrong
from ossia.harmony.events import Rule
from ossia.harmony.messages import Conversation, Effort, Message, Role
from ossia.harmony.render import render_for_completion
from ossia.llm import LLM


@dataclass(frozen=True)
class Plan:
    """How much is asked, and how."""

    count: int = 200
    """Examples of each task, where it has so many."""
    seed: int = 0
    efforts: tuple[Effort, ...] = tuple(Effort)
    max_tokens: int = 1024
    """Of one turn, reasoning included; less where the context ends before."""
    batch: int = 64
    """Examples in flight at once."""

    def __post_init__(self) -> None:
        for name in ("count", "max_tokens", "batch"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} must be 1 or more; got {getattr(self, name)}.")


@dataclass(frozen=True)
class Outcome:
    """What became of one example under one effort."""

    variant: str
    asked: str
    """The last message of the user."""
    prompt: str
    """As the model saw it in the last turn, control tokens by their spelling."""
    expected: str
    right: bool
    why: str
    """What is wrong."""
    got: str = ""
    """The answer, and the calls as `→ name(arguments)`."""
    reasoning: str = ""
    reasoning_tokens: int = 0
    answer_tokens: int = 0
    """Of the answer and the arguments of calls."""
    repaired: bool = False
    """The model's Harmony deviated from the format somewhere in the turn."""
    cut: bool = False
    """It ended by length."""


@dataclass(frozen=True)
class Score:
    """A task under one effort."""

    task: Task
    effort: Effort
    outcomes: tuple[Outcome, ...]
    asked: int
    """More than there are outcomes when the run was interrupted."""
    seconds: float

    @property
    def of(self) -> int:
        return len(self.outcomes)

    @cached_property
    def right(self) -> int:
        return sum(outcome.right for outcome in self.outcomes)

    @property
    def complete(self) -> bool:
        return self.of == self.asked

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.right, self.of)

    def mean(self, value: Callable[[Outcome], float]) -> float:
        return sum(map(value, self.outcomes)) / max(self.of, 1)

    @property
    def reasoning_tokens(self) -> float:
        return self.mean(lambda outcome: outcome.reasoning_tokens)

    @property
    def answer_tokens(self) -> float:
        return self.mean(lambda outcome: outcome.answer_tokens)

    @property
    def repaired(self) -> float:
        return self.mean(lambda outcome: outcome.repaired)

    @property
    def cut(self) -> float:
        return self.mean(lambda outcome: outcome.cut)

    def by_variant(self) -> dict[str, tuple[int, int]]:
        """(right, of) of each variant, in alphabetical order."""
        found: dict[str, tuple[int, int]] = {}
        for outcome in sorted(self.outcomes, key=lambda outcome: outcome.variant):
            right, of = found.get(outcome.variant, (0, 0))
            found[outcome.variant] = right + outcome.right, of + 1
        return found


def wilson_interval(right: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score method (1927); (0, 1) of nothing."""
    if of == 0:
        return 0.0, 1.0
    z = 1.959963984540054  # the 97.5 % point of the normal distribution
    share = right / of
    middle = share + z * z / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    low, high = ((middle + sign * half) / (1 + z * z / of) for sign in (-1, 1))
    return (0.0 if right == 0 else low), (1.0 if right == of else high)


@dataclass(frozen=True)
class Progress:
    """Where a run stands; given after each example."""

    task: Task
    effort: Effort
    done: int
    total: int
    """Examples over all tasks and efforts."""
    tokens: int
    """Generated so far."""
    seconds: float


def run_tasks(
    llm: LLM,
    tasks: Sequence[Task],
    plan: Plan | None = None,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Iterator[Score]:
    """The score of each task under each effort, task by task.

    An interrupt gives the score of what has been answered of the task in progress, and then
    KeyboardInterrupt. That score counts the examples before the first unanswered one, for among
    those in flight the short answers come first. Raises EngineError when the engine fails.
    """
    plan = plan or Plan()
    drawn = [(task, task.examples(plan.count, plan.seed)) for task in tasks]
    meter = _Meter(sum(len(examples) for _, examples in drawn) * len(plan.efforts), progress)
    for task, examples in drawn:
        for effort in plan.efforts:
            asking = _Asking(llm, plan, task, effort, meter)
            interrupted: KeyboardInterrupt | None = None
            try:
                asyncio.run(asking.ask_all(examples))
            except KeyboardInterrupt as interrupt:
                interrupted = interrupt
            score = asking.score(len(examples))
            if score.outcomes:
                yield score
            if interrupted is not None:
                raise interrupted


class _Meter:
    """Counts over a whole run."""

    def __init__(self, total: int, report: Callable[[Progress], None]) -> None:
        self._total, self._report = total, report
        self._done = self._tokens = 0
        self._began = time.monotonic()

    def count(self, task: Task, effort: Effort, tokens: int) -> None:
        self._done += 1
        self._tokens += tokens
        seconds = time.monotonic() - self._began
        self._report(Progress(task, effort, self._done, self._total, self._tokens, seconds))


class _Asking:
    """The examples of one task under one effort."""

    def __init__(self, llm: LLM, plan: Plan, task: Task, effort: Effort, meter: _Meter) -> None:
        self._llm, self._plan, self._task, self._effort = llm, plan, task, effort
        self._meter = meter
        self._setting = Setting(effort, llm.card.model_identity)
        self._sampling: SamplingParams = replace(
            llm.default_sampling, temperature=0.0, max_tokens=plan.max_tokens
        )
        self._began = time.monotonic()
        self.outcomes: dict[int, Outcome] = {}
        """By the example's place, for they end in any order."""

    def score(self, asked: int) -> Score:
        answered = itertools.takewhile(self.outcomes.__contains__, range(asked))
        outcomes = tuple(self.outcomes[place] for place in answered)
        seconds = time.monotonic() - self._began
        return Score(self._task, self._effort, outcomes, asked, seconds)

    async def ask_all(self, examples: Sequence[Example]) -> None:
        room = asyncio.Semaphore(self._plan.batch)

        async def ask(place: int, example: Example) -> None:
            async with room:
                outcome, tokens = await self._ask(example)
            self.outcomes[place] = outcome
            self._meter.count(self._task, self._effort, tokens)

        await asyncio.gather(*(ask(i, example) for i, example in enumerate(examples)))

    async def _ask(self, example: Example) -> tuple[Outcome, int]:
        """The outcome, and how many tokens it took."""
        conversation = example.conversation(self._setting)
        tokens = 0
        try:
            if example.proceed is not None:
                first = await self._answer(conversation)
                tokens = len(first.token_ids)
                follow = example.proceed(first)
                conversation = Conversation((*conversation.messages, *follow))
            turn = await self._answer(conversation)
        except RequestError as error:
            return self._outcome(example, conversation, None, wrong(f"refused: {error}")), tokens
        grade = example.grade(turn)
        if turn.finish is TurnFinish.LENGTH:
            grade = wrong(f"cut after {len(turn.token_ids)} tokens")
        elif turn.finish is TurnFinish.REPETITION:
            grade = wrong(f"repeated itself for {len(turn.token_ids)} tokens")
        return self._outcome(example, conversation, turn, grade), tokens + len(turn.token_ids)

    async def _answer(self, conversation: Conversation) -> Turn:
        turn = await self._llm.achat(conversation, sampling=self._sampling, strict=False)
        if turn.finish.failed:
            why = "; ".join(diagnostic.text for diagnostic in turn.diagnostics)
            raise EngineError(
                f"The evaluation stopped, for the engine failed: {why or 'no reason'}"
            )
        return turn

    def _outcome(
        self, example: Example, conversation: Conversation, turn: Turn | None, grade: Grade
    ) -> Outcome:
        encode = self._llm.tokenizer.encode
        outcome = Outcome(
            variant=example.variant,
            asked=_last_of_user(conversation.messages),
            prompt=_text(self._llm, conversation),
            expected=example.expected,
            right=grade.right,
            why=grade.why,
        )
        if turn is None:
            return outcome
        written = [turn.content or "", *(call.arguments for call in turn.tool_calls)]
        return replace(
            outcome,
            got=told(turn),
            reasoning=turn.reasoning,
            reasoning_tokens=len(encode(turn.reasoning)),
            answer_tokens=sum(len(encode(text)) for text in written),
            repaired=was_repaired(turn),
            cut=turn.finish is TurnFinish.LENGTH,
        )


def _text(llm: LLM, conversation: Conversation) -> str:
    return llm.tokenizer.decode(render_for_completion(llm.tokenizer, conversation).token_ids)


def _last_of_user(messages: Sequence[Message]) -> str:
    return next((m.text for m in reversed(messages) if m.role == Role.USER), "")


def told(turn: Turn) -> str:
    """All that the turn says and calls, for people to read."""
    calls = (f"→ {call.name}({call.arguments})" for call in turn.tool_calls)
    return "\n".join(text for text in (turn.preamble, turn.content, *calls) if text)


def was_repaired(turn: Turn) -> bool:
    """Whether the parser had to mend the model's Harmony, or the model called what was not offered.

    An end by length is neither.
    """
    return any(
        diagnostic.summary.startswith("The model")
        and not diagnostic.text.startswith(f"{Rule.CUT}:")
        for diagnostic in turn.diagnostics
    )

"""A conversation in the terminal: what is typed becomes turns, events become what is shown.

Lines come from a prompt with history and editing where there is a terminal, else from standard
input as they are, so that a conversation can be scripted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ossia.agent.events import (
    Diagnostic,
    PreambleDelta,
    ReasoningDelta,
    TextDelta,
    ToolCallEvent,
    Turn,
    TurnEnd,
    TurnFinish,
)
from ossia.cli import terminal
from ossia.engine.request import SamplingParams
from ossia.errors import EngineError, OssiaError, RequestError
from ossia.harmony.messages import Conversation, Effort, Message, Role, SystemContent
from ossia.llm import LLM

HELP = """\
/effort low|medium|high   how long the model reasons from now on
/reset                    forget the conversation
/save FILE                write the conversation as JSON (`ossia harmony render` reads it)
/help                     this
/quit                     leave (or Ctrl-D)
Ctrl-C stops the turn, not the program. A line that ends in \\ goes on in the next one."""


class ChatSession:
    """One conversation with one model."""

    def __init__(
        self,
        llm: LLM,
        *,
        effort: Effort,
        instructions: str | None,
        sampling: SamplingParams,
        stop: Sequence[str],
        hide_reasoning: bool,
    ) -> None:
        self._llm = llm
        self._instructions = instructions
        self._sampling = sampling
        self._stop = stop
        self._hide_reasoning = hide_reasoning
        self._effort = effort
        self._conversation = self._fresh()

    # -- One question --------------------------------------------------------------------------

    def answer(self, text: str) -> None:
        """Show one turn. Raises EngineError when it failed, KeyboardInterrupt on Ctrl-C."""
        turn = self._turn(text)
        if turn.finish.failed:
            raise _failure(turn)

    def answer_as_json(self, text: str) -> None:
        """Print one turn as a JSON object."""
        turn = self._llm.chat(self._asking(text), sampling=self._sampling, stop=self._stop)
        print(json.dumps(_turn_json(turn, self._hide_reasoning), ensure_ascii=False))
        if turn.finish.failed:
            raise _failure(turn)

    # -- A conversation ------------------------------------------------------------------------

    def talk(self) -> None:
        """Read lines until their end; every error is one line and the conversation goes on."""
        interactive = sys.stdin.isatty()
        if interactive:
            print("/help lists the commands, Ctrl-D leaves.", file=sys.stderr)
        for line in _typed_lines() if interactive else _piped_lines():
            if not line.strip():
                continue
            try:
                if line.startswith("/"):
                    if not self._command(line):
                        return
                else:
                    self._turn(line)
            except KeyboardInterrupt:
                terminal.end_style()
                print("\n(stopped; this turn is not kept)", file=sys.stderr)
            except (OssiaError, OSError) as error:
                terminal.end_style()
                # What the engine refuses here is a conversation that has outgrown the context.
                hint = " /reset begins anew." if isinstance(error, RequestError) else ""
                print(f"error: {error}{hint}", file=sys.stderr)

    def _command(self, line: str) -> bool:
        """Carry out a /command; False means leave."""
        name, _, argument = line[1:].partition(" ")
        argument = argument.strip()
        match name:
            case "quit" | "exit":
                return False
            case "help":
                print(HELP)
            case "reset":
                self._conversation = self._fresh()
                print("(a new conversation)", file=sys.stderr)
            case "effort":
                self._set_effort(argument)
            case "save":
                self._save(argument)
            case _:
                print(f"error: there is no command /{name}; /help lists them.", file=sys.stderr)
        return True

    def _set_effort(self, argument: str) -> None:
        if argument not in set(Effort):
            print(
                f"error: /effort takes low, medium or high; got {argument or 'nothing'!r}. "
                f"It is {self._effort}.",
                file=sys.stderr,
            )
            return
        self._effort = Effort(argument)
        head, *rest = self._conversation.messages
        content = tuple(
            replace(part, reasoning_effort=self._effort)
            if isinstance(part, SystemContent)
            else part
            for part in head.content
        )
        self._conversation = Conversation((replace(head, content=content), *rest))
        print(f"(effort is {self._effort} from now on)", file=sys.stderr)

    def _save(self, argument: str) -> None:
        if not argument:
            print("error: /save takes the name of a file, such as /save chat.json", file=sys.stderr)
            return
        path = Path(argument).expanduser()
        text = json.dumps(self._conversation.to_dict(), ensure_ascii=False, indent=2)
        path.write_text(text + "\n")
        print(f"(saved to {path})", file=sys.stderr)

    # -- A turn --------------------------------------------------------------------------------

    def _fresh(self) -> Conversation:
        return self._llm.conversation([], effort=self._effort, instructions=self._instructions)

    def _asking(self, text: str) -> Conversation:
        asked = Message.of_text(Role.USER, text)
        return Conversation((*self._conversation.messages, asked))

    def _turn(self, text: str) -> Turn:
        """Show a turn as it happens; it joins the conversation only when it is complete."""
        asked = self._asking(text)
        screen = TurnScreen(self._hide_reasoning)
        events = self._llm.stream_chat(asked, sampling=self._sampling, stop=self._stop)
        turn: Turn | None = None
        for event in events:
            screen.show(event)
            if isinstance(event, TurnEnd):
                turn = event.turn
        assert turn is not None  # every turn ends with TurnEnd
        if not turn.finish.failed and turn.finish is not TurnFinish.CANCELLED:
            self._conversation = Conversation((*asked.messages, *turn.messages))
        return turn


@dataclass
class TurnScreen:
    """Shows the events of one turn: reasoning dimmed and apart, then what is said."""

    hide_reasoning: bool
    _section: str = ""

    def show(self, event: object) -> None:
        match event:
            case ReasoningDelta(text):
                if not self.hide_reasoning:
                    self._write("reasoning", text)
            case PreambleDelta(text):
                self._write("preamble", text)
            case TextDelta(text):
                self._write("answer", text)
            case ToolCallEvent(call):
                self._write("call", f"{call.name}({call.arguments})")
            case Diagnostic(text, summary):
                self._end_section()
                shown = summary if self.hide_reasoning else text
                print(f"note: {terminal.printable(shown)}", file=sys.stderr)
            case TurnEnd(turn):
                self._end_section()
                self._end(turn)

    def _end(self, turn: Turn) -> None:
        if turn.finish is TurnFinish.LENGTH:
            print("(cut: --max-tokens or the model's context was reached)", file=sys.stderr)
        elif turn.finish is TurnFinish.REPETITION:
            print("(ended: the model repeated itself)", file=sys.stderr)
        elif turn.finish is TurnFinish.TOOL_CALLS:
            print("(the model asks for a tool; this chat offers none)", file=sys.stderr)
        elif turn.content is None and not turn.preamble:
            print("(the model gave no answer)", file=sys.stderr)

    def _write(self, section: str, text: str) -> None:
        if section != self._section:
            self._end_section()
            self._section = section
            terminal.begin_style(dim=section == "reasoning")
            if section == "reasoning" and not terminal.is_terminal():
                terminal.write("[reasoning]\n")
            elif section == "answer" and not terminal.is_terminal() and not self.hide_reasoning:
                terminal.write("[answer]\n")
        terminal.write(text)

    def _end_section(self) -> None:
        if self._section:
            terminal.end_style()
            terminal.write("\n" if self._section != "reasoning" else "\n\n")
            self._section = ""


def _failure(turn: Turn) -> EngineError:
    return EngineError("; ".join(d.summary for d in turn.diagnostics) or "The turn failed.")


def _turn_json(turn: Turn, hide_reasoning: bool) -> dict[str, object]:
    values: dict[str, object] = {
        "content": turn.content,
        "preamble": turn.preamble or None,
        "tool_calls": [
            {"id": call.call_id, "name": call.name, "arguments": call.arguments}
            for call in turn.tool_calls
        ],
        "finish": str(turn.finish),
        "usage": {
            "prompt_tokens": turn.usage.prompt_tokens,
            "completion_tokens": turn.usage.completion_tokens,
            "cached_tokens": turn.usage.cached_tokens,
        },
        "diagnostics": [d.summary if hide_reasoning else d.text for d in turn.diagnostics],
    }
    if not hide_reasoning:  # the tokens spell the reasoning, so they go with it
        values = {"reasoning": turn.reasoning, **values, "tokens": list(turn.token_ids)}
    return values


def _typed_lines() -> Iterator[str]:
    """What is typed at a prompt with editing and history; Ctrl-C clears the line, Ctrl-D ends."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory

    prompt = PromptSession[str](history=InMemoryHistory())
    yield from _joined(lambda more: prompt.prompt("… " if more else "> "))


def _piped_lines() -> Iterator[str]:
    def read(more: bool) -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    yield from _joined(read)


def _joined(read: Callable[[bool], str]) -> Iterator[str]:
    """Lines, those that end in a backslash joined with the next."""
    held: list[str] = []
    while True:
        try:
            line = read(bool(held))
        except KeyboardInterrupt:
            held = []
            continue
        except EOFError:
            if held:
                yield "\n".join(held)
            return
        if line.endswith("\\"):
            held.append(line[:-1])
        else:
            yield "\n".join([*held, line])
            held = []

"""The parser rule by rule, what it tells when, and well-formed messages against openai-harmony."""

from __future__ import annotations

import random

import pytest

from completions import joined, not_utf8, parse, scrambled, tokens_of, vocabulary
from ossia.errors import UsageError
from ossia.harmony.events import (
    ContentDelta,
    HarmonyEvent,
    MessageEnd,
    MessageKind,
    MessageStart,
    Repair,
    Rule,
    Stop,
)
from ossia.harmony.messages import Conversation, Message, Role, Tool, ToolNamespace
from ossia.harmony.parser import HarmonyParser
from ossia.harmony.render import render_for_completion, render_message
from ossia.harmony.turn import ParsedTurn, parse_turn

TOOLS = ["f", "g", "bash", "get_weather", "search", "browser.search", "python"]

THINK = "<|channel|>analysis<|message|>think<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>ok<|return|>"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>'
F = [("f", '{"a":1}')]


def told(turn: ParsedTurn) -> dict[str, object]:
    """R reasoning, P preamble, C content, T calls, U unoffered ones, F finish; without empties."""
    found: dict[str, object] = {
        "R": turn.reasoning,
        "P": turn.preamble,
        "C": turn.content,
        "T": [(call.name, call.arguments) for call in turn.tool_calls],
        "U": [(call.name, call.arguments) for call in turn.unoffered],
        "F": turn.finish if turn.finish != "stop" else "",
    }
    return {key: value for key, value in found.items() if value}


def called(*calls: tuple[str, str], **rest: object) -> dict[str, object]:
    return {"T": list(calls), "F": "tool_calls"} | rest


OK = {"C": "ok"}
RULES: dict[str, list[tuple[str, dict[str, object]]]] = {
    "R1: a stop token where a start is expected": [
        (THINK + "<|end|><|end|><|return|><|call|>" + FINAL, {"R": "think"} | OK),
        (FINAL + "<|return|>", OK),
    ],
    "R2: <|channel|> or to= implies <|start|>assistant": [
        (THINK + "<|channel|>final<|message|>ok<|return|>", {"R": "think"} | OK),
        (
            THINK + ' to=functions.f<|channel|>commentary json<|message|>{"a":1}<|call|>',
            called(*F, R="think"),
        ),
        (THINK + 'to=f<|message|>{"a":1}<|call|>', called(*F, R="think")),
        (
            THINK + 'assistant to=f<|channel|>commentary<|message|>{"a":1}<|call|>',
            called(*F, R="think"),
        ),
        (THINK + 'commentary to=f json<|message|>{"a":1}<|call|>', called(*F, R="think")),
    ],
    "R3: other tokens there are skipped, shown only when there is nothing else": [
        (THINK + "Sure! <|message|> Well.<|constrain|>" + FINAL, {"R": "think"} | OK),
        (THINK + "assistant<|channel|>final<|message|>ok<|return|>", {"R": "think"} | OK),
        (THINK + "final<|message|>lost<|return|>", {"R": "think"}),
        ("<|return|>shown<|return|>", {"C": "shown"}),
        ("<|channel|>final<|message|><|end|>shown<|return|>", {"C": "shown"}),
        ("<|return|>one<|end|>two", {"C": "one\n\ntwo", "F": "length"}),
        ("<|return|>assistant<|return|>", {}),
        (CALL + "text", called(*F)),
    ],
    "R4: <|start|> inside a header": [
        ("<|start|>assistant<|start|>assistant" + FINAL, OK),
        ("<|channel|>commentary to=g" + FINAL, OK),
        (THINK + "<|start|>user" + FINAL, {"R": "think"} | OK),
        ("<|channel|>commentary Well, now." + FINAL, {"R": "Well, now."} | OK),
        ("Well, now." + FINAL, OK),
        ("Well, now.<|start|>assistant<|return|>", {"C": "Well, now."}),
    ],
    "R5: header words": [
        ("<|channel|>analysis<|channel|>final<|message|>ok<|return|>", OK),
        ("<|channel|>commentary to=assistant<|channel|>analysis<|message|>t<|end|>", {"R": "t"}),
        ("<|channel|>final_answer<|message|>ok<|return|>", OK),
        ("<|channel|>finalx<|message|>ok<|return|>", OK),
        ("<|channel|>Final:<|message|>ok<|return|>", OK),
        ("<|channel|>commentary?commentary?<|message|>p<|end|>", {"P": "p"}),
        ("<|start|>assistantfinal<|message|>ok<|return|>", OK),
        ("<|start|>assistantanalysis<|message|>t<|end|>", {"R": "t"}),
        ("analysis<|message|>t<|end|>", {"R": "t"}),
        ('<|start|>bash<|message|>{"a":1}<|call|>', called(("bash", '{"a":1}'))),
        ('<|start|>functions.f<|channel|>commentary<|message|>{"a":1}<|call|>', called(*F)),
        ('<|channel|>functions.f<|channel|>commentary to=assistant<|message|>{"a":1}', called(*F)),
        (
            '<|channel|>bash<|channel|>analysis<|message|>{"a":1}<|call|>',
            called(("bash", '{"a":1}')),
        ),
        ('<|channel|>final <|constrain|>functions.f<|message|>{"a":1}<|call|>', called(*F)),
        ("<|channel|>commentary let us search the web<|message|>p<|end|>", {"P": "p"}),
        ("<|channel|>thoughts<|message|>ok<|return|>", OK),
        ("<|start|>asistant<|channel|>final<|message|>ok<|return|>", OK),
        ("<|constrain|>json<|message|>ok<|return|>", OK),
    ],
    "R6: a stop token inside a header": [
        ("Refused.<|return|>", {"C": "Refused."}),
        ("Refused.", {"C": "Refused.", "F": "length"}),
        ("Hm.<|end|>" + FINAL, {"R": "Hm."} | OK),
        ("Hm.<|end|><|start|>assistantHa.<|return|>", {"R": "Hm.\n\nHa."}),
        (THINK + "<|start|>assistant<|channel|>commentary 2? odd<|end|>", {"R": "think\n\n2? odd"}),
        ("<|channel|>commentary 2? odd<|return|>", {"C": "2? odd"}),
        ("<|channel|>analysis so the final answer<|return|>", {"R": "so the final answer"}),
        ("<|channel|>analysisSo it is.<|return|>", {"R": "So it is."}),
        ("<|channel|>analysis<|channel|>final so<|return|>", {"R": "so"}),
        ("<|channel|>analysis<|end|>so it is<|end|>", {"R": "so it is"}),
        ("<|channel|>analysis<|start|>so it is<|end|>", {"R": "so it is"}),
        (
            "<|channel|>commentary to=f <|constrain|>write: edit the file.<|end|>" + FINAL,
            {"R": "write: edit the file."} | OK,
        ),
        ('<|channel|>commentary to=f <|constrain|>json{"a":1}<|call|>', called(*F)),
        ('<|channel|>commentary to=functions.f{"a":1}<|call|>', called(*F)),
        ('<|channel|>commentary to=rm {"a":1}<|call|>', {"U": [("rm", '{"a":1}')]}),
        ('<|channel|>analysis to=f code{"a":1}<|call|>', {"R": '{"a":1}'}),
    ],
    "R7: final without <|message|>": [
        ("<|channel|>final<|constrain|>json{}<|return|>", {"C": "{}"}),
        ("<|channel|>final[]<|return|>", {"C": "[]"}),
        ("<|channel|>final⏎⏎The analysis is final.<|return|>", {"C": "The analysis is final."}),
        ("<|channel|>final<|channel|>ok<|return|>", OK),
        ("<|channel|>final ok", OK | {"F": "length"}),
        (THINK + "<|start|>assistant<|channel|>final ok<|return|>", {"R": "think"} | OK),
    ],
    "R8: the recipient": [
        (f"<|channel|>commentary {to}<|message|>" + '{"a":1}<|call|>', called(*F))
        for to in (
            *("to=f", "to=functions..f", "to=functions.f..", "to= functions.f", "to=functions. f"),
            *("to=functions.f to=functions.g", "to=f to=unknown", "to=function.f", "to=tools.f"),
            *("to=F", "to=functions.fjson", "to=functions.f:", "to=functions<|reserved_0|>.f"),
            *("to=functions.f{U+00A0}json", "to={U+200B}functions.f{U+3000}", "f", "functions.f"),
            *("to=functions.f{literal: <|constrain|>}json", "to=assistant to=f", "to=all f"),
        )
    ],
    "R9: only what is offered": [
        ('<|channel|>final to=f<|message|>{"a":1}<|return|>', called(*F)),
        ('<|channel|>analysis to=f<|message|>{"a":1}<|end|>', called(*F)),
        ('<|channel|>analysis to=rm<|message|>{"a":1}<|call|>', {"U": [("rm", '{"a":1}')]}),
        (
            "<|channel|>analysis to=browser.open<|message|>{}<|call|>",
            {"U": [("browser.open", "{}")]},
        ),
        # The trained container.* and an offered function of the same name are not the same.
        (
            "<|channel|>analysis to=container.bash<|message|>{}<|call|>",
            {"U": [("container.bash", "{}")]},
        ),
        ("<|channel|>analysis to=rm to=f<|message|>{}<|call|>", {"U": [("rm", "{}")]}),
        ("<|channel|>commentary to=user<|message|>p<|end|>", {"P": "p"}),
    ],
    "R10: arguments": [
        (f"<|channel|>commentary to=f<|message|>{written}<|call|>", called(("f", arguments)))
        for written, arguments in (
            ('{"a":1}}]', '{"a":1}'),
            ('{"a":1} ] ', '{"a":1}'),
            ('{"name":"f","parameters":{"a": 1.50}}', '{"a": 1.50}'),
            ('{"name":"functions.f","parameters":{"a":1}}]', '{"a":1}'),
            ('{"parameters":"{\\"a\\":1}","name":"f"}', '{"a":1}'),
            # Not what a wrapping looks like: the name is another, or there is more.
            ('{"name":"x","parameters":{}}', '{"name":"x","parameters":{}}'),
            ('{"name":"f","parameters":{},"a":1}', '{"name":"f","parameters":{},"a":1}'),
            ("{'a':1}", "{'a':1}"),
            ('{"a":1', '{"a":1'),
            ('[{"a":1}]', '[{"a":1}]'),
            ('{"a":NaN}', '{"a":NaN}'),
            ("", ""),
        )
    ],
    "R11: control tokens inside content": [
        (
            "<|channel|>final<|message|>A<|message|>B<|constrain|>C<|reserved_0|>D<|return|>",
            {"C": "ABCD"},
        ),
        ("<|channel|>final<|message|>A<|start|>B<|channel|>C<|return|>", {"C": "ABC"}),
        (
            "<|channel|>final<|message|>A<|channel|>B<|channel|>final<|message|>C<|return|>",
            {"C": "AB\n\nC"},
        ),
        ("<|channel|>final<|message|>A<|start|><|message|>B<|return|>", {"C": "AB"}),
        ("<|channel|>final<|message|>A<|channel|><|message|>B<|return|>", {"C": "AB"}),
        ("<|channel|>analysis<|message|>think" + FINAL, {"R": "think"} | OK),
        ("<|channel|>analysis<|message|>think<|start|>" + FINAL, {"R": "think"} | OK),
        ("<|channel|>analysis<|message|>think<|start|>assistant" + FINAL, {"R": "think"} | OK),
        ("<|channel|>analysis<|message|>think<|channel|>final ok<|return|>", {"R": "think"} | OK),
        ("<|channel|>analysis<|message|>think" + CALL, called(*F, R="think")),
        ("<|channel|>final<|message|>ok<|channel|>analysis Hm.<|return|>", {"R": "Hm."} | OK),
        (
            "<|channel|>final<|message|>ok<|channel|>analysis so to say, hm<|message|>t<|end|>",
            {"R": "t"} | OK,
        ),
        ("<|channel|>final<|message|>ok<|start|>assistant<|return|>", OK),
        ("<|channel|>final<|message|>ok<|start|>assis", OK | {"F": "length"}),
        (
            "<|channel|>final<|message|>{literal: <|end|><|start|>}ok<|return|>",
            {"C": "<|end|><|start|>ok"},
        ),
        (
            "{literal: <|channel|>final<|message|>}ok<|return|>",
            {"C": "<|channel|>final<|message|>ok"},
        ),
        ("<|channel|>commentary{literal: <|constrain|>} to=f<|message|>p<|end|>", {"P": "p"}),
    ],
    "R12: an invented message": [
        (
            CALL
            + "<|start|>functions.f to=assistant<|channel|>commentary<|message|>1<|end|>"
            + FINAL,
            called(*F),
        ),
        (CALL + "<|start|>functions.f<|channel|>commentary<|message|>1<|end|>" + FINAL, called(*F)),
        (CALL + "<|start|>rm<|channel|>commentary<|message|>1<|end|>" + FINAL, called(*F)),
        (
            CALL + "<|start|>assistant" + THINK + "<|start|>tool<|message|>1<|end|>" + FINAL,
            called(*F),
        ),
        (CALL[:-8] + "<|start|>functions.f to=assistant<|message|>1<|end|>" + FINAL, called(*F)),
        (THINK + FINAL + "<|start|>user<|message|>And?<|end|>" + FINAL, {"R": "think"} | OK),
        (THINK + "<|start|>f to=assistant<|message|>1<|end|>" + FINAL, {"R": "think"}),
        (THINK + "<|start|>user<|return|>" + FINAL, {"R": "think"}),
    ],
    "The stream ends early": [
        ("", {"F": "length"}),
        ("<|channel|>", {"F": "length"}),
        ("<|channel|>comm", {"F": "length"}),
        ("<|channel|>analysis", {"F": "length"}),
        (THINK + "<|start|>assistant to=functions.get_wea", {"R": "think", "F": "length"}),
        (
            THINK + "<|start|>assistant to=f<|channel|>commentary <|constrain|>json",
            {"R": "think", "F": "length"},
        ),
        (THINK + " to=functions.f", {"R": "think", "F": "length"}),
        (THINK, {"R": "think"}),
        ("<|channel|>final<|message|>ok<|endoftext|>", OK),
        ('<|channel|>commentary to=f<|message|>{"a":1', {"T": [("f", '{"a":1')], "F": "length"}),
    ],
}


@pytest.mark.parametrize(
    ("rule", "number"), [(rule, n) for rule, cases in RULES.items() for n in range(len(cases))]
)
def test_rule(rule: str, number: int) -> None:
    notation, expected = RULES[rule][number]
    ids = tokens_of(scrambled(), notation)
    assert told(parse_turn(scrambled(), ids, tools=TOOLS)) == expected, notation
    if rule.startswith("R"):
        diagnostics = parse_turn(scrambled(), ids, tools=TOOLS).diagnostics
        harmless = rule.startswith("R11") and notation.startswith("<|channel|>final<|message|>{lit")
        whole = rule.startswith("R9") or rule.startswith("R10")
        assert diagnostics or harmless or whole, notation


def events_of(notation: str, **options: object) -> list[HarmonyEvent]:
    return joined(parse(scrambled(), [tokens_of(scrambled(), notation)], tools=TOOLS, **options))


def test_events_of_a_well_formed_turn() -> None:
    thought, call = (
        tokens_of(scrambled(), THINK),
        tokens_of(scrambled(), "<|start|>assistant" + CALL),
    )
    events = events_of(THINK + "<|start|>assistant" + CALL)
    reasoning, tool_call, assistant = MessageKind.REASONING, MessageKind.TOOL_CALL, Role.ASSISTANT
    say, end = thought.index(scrambled().control.message) + 1, len(thought)
    arguments, stop = len(thought) + call.index(scrambled().control.message) + 1, end + len(call)
    to_f, json = "functions.f", "<|constrain|>json"
    assert events == [
        MessageStart((0, say), reasoning, assistant, channel="analysis"),
        ContentDelta((say, end - 1), reasoning, "think"),
        MessageEnd(
            (end - 1, end),
            reasoning,
            Message.of_text(assistant, "think", channel="analysis"),
            Stop.END,
        ),
        MessageStart((end, arguments), tool_call, assistant, None, "commentary", to_f, json),
        ContentDelta((arguments, stop - 1), tool_call, '{"a":1}'),
        MessageEnd(
            (stop - 1, stop),
            tool_call,
            Message.of_text(
                assistant, '{"a":1}', channel="commentary", recipient=to_f, content_type=json
            ),
            Stop.CALL,
        ),
    ]


def deltas(events: list[HarmonyEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, ContentDelta))


def test_text_comes_with_its_token() -> None:
    tokenizer = scrambled()
    parser = HarmonyParser(tokenizer)
    assert parser.feed(tokens_of(tokenizer, "<|channel|>final<|message|>")) != []
    for token in tokenizer.encode("An answer, token by token."):
        assert deltas(parser.feed([token])) == tokenizer.decode([token])


def test_a_character_waits_for_its_last_byte() -> None:
    tokenizer = scrambled()
    parser = HarmonyParser(tokenizer)
    parser.feed(tokens_of(tokenizer, "<|channel|>final<|message|>"))
    first, *others = tokenizer.encode("🎼")
    assert len(others) >= 1
    assert deltas(parser.feed([first])) == ""
    assert deltas(parser.feed([tokenizer.control.message])) == ""  # dropped, it parts nothing
    assert deltas(parser.feed(others)) == "🎼"
    assert deltas(parser.feed([first])) == ""
    assert deltas(parser.feed([tokenizer.control.return_])) == "\ufffd"


def test_bytes_that_are_not_utf8_are_reported_and_a_written_u_fffd_is_not() -> None:
    tokenizer = scrambled()
    written = events_of("<|channel|>final<|message|>a{U+FFFD}b<|return|>")
    assert not [event for event in written if isinstance(event, Repair)]
    ids = tokens_of(tokenizer, "<|channel|>final<|message|>")
    ids += [not_utf8(tokenizer), tokenizer.control.return_]
    repairs = [e.rule for e in parse(tokenizer, [ids]) if isinstance(e, Repair)]
    assert repairs == [Rule.R0]


def test_what_follows_a_call_waits_for_the_end_or_the_next_call() -> None:
    tokenizer = scrambled()
    parser = HarmonyParser(tokenizer, tools=TOOLS, parallel=True)
    assert deltas(parser.feed(tokens_of(tokenizer, CALL))) == '{"a":1}'
    assert parser.feed(tokens_of(tokenizer, "<|start|>assistant" + THINK)) == []
    second = tokens_of(tokenizer, "<|start|>assistant" + CALL)
    assert deltas(parser.feed(second[:-1])) == 'think{"a":1}'
    parser.feed(second[-1:])
    assert parser.feed(tokens_of(tokenizer, FINAL)) == []
    assert deltas(parser.finish()) == "ok"


def test_after_an_invented_message_nothing_is_worth_generating() -> None:
    tokenizer = scrambled()
    parser = HarmonyParser(tokenizer, tools=TOOLS)
    parser.feed(tokens_of(tokenizer, CALL + "<|start|>functions.f to=assistant"))
    assert not parser.void
    parser.feed([tokenizer.control.message])
    assert parser.void
    assert not parser.cut or parser.finish() == []
    assert not parser.cut


def test_raw_tokens_are_kept() -> None:
    parser = HarmonyParser(scrambled())
    ids = [-1, 10**30, *tokens_of(scrambled(), FINAL)]
    parser.feed(ids[:3])
    parser.feed(ids[3:])
    assert parser.tokens == tuple(ids)


@pytest.mark.parametrize("parallel", [False, True])
def test_parallel_calls(parallel: bool) -> None:
    two = CALL + '<|start|>assistant<|channel|>commentary to=functions.g<|message|>{"b":2}<|call|>'
    ids = tokens_of(scrambled(), two)
    turn = parse_turn(scrambled(), ids, tools=TOOLS, parallel=parallel)
    assert told(turn)["T"] == F + [("g", '{"b":2}')] * parallel
    assert [r.rule for r in turn.diagnostics] == [Rule.PARALLEL] * (not parallel)
    assert parallel or '{"b":2}' in turn.diagnostics[0].text


def test_a_known_schema_decides_what_is_a_wrapping() -> None:
    def tool(*properties: str) -> ToolNamespace:
        schema = {"type": "object", "properties": {p: {"type": "string"} for p in properties}}
        return ToolNamespace("functions", None, (Tool("f", "", schema),))

    written = '{"name":"other","parameters":{"a":1}}'
    ids = tokens_of(scrambled(), f"<|channel|>commentary to=f<|message|>{written}<|call|>")
    for namespace, expected in ((tool("a"), '{"a":1}'), (tool("name", "a"), written)):
        turn = parse_turn(scrambled(), ids, tools=[namespace])
        assert [call.arguments for call in turn.tool_calls] == [expected]


def test_a_namespace_without_tools_takes_text() -> None:
    ids = tokens_of(scrambled(), "<|channel|>analysis to=python code<|message|>print(1)]<|call|>")
    turn = parse_turn(scrambled(), ids, tools=[ToolNamespace("python", "a tool")])
    assert told(turn) == called(("python", "print(1)]"))
    assert turn.diagnostics == ()


def test_wrong_use_is_refused() -> None:
    parser = HarmonyParser(scrambled())
    parser.finish()
    with pytest.raises(UsageError, match="finished"):
        parser.feed([1])
    with pytest.raises(UsageError, match="finished"):
        parser.finish()
    with pytest.raises(UsageError, match="'assistant' or None"):
        HarmonyParser(scrambled(), role=Role.USER)


ROUND_TRIP = [
    Message.of_text(Role.SYSTEM, "You are ChatGPT."),
    Message.of_text(Role.DEVELOPER, "# Instructions\n\nBe brief."),
    Message.of_text(Role.USER, "Weather? <|end|> é 日本", name="Émile"),
    Message.of_text(Role.ASSISTANT, "Think.", channel="analysis"),
    Message.of_text(Role.ASSISTANT, "Let me see.", channel="commentary"),
    Message.of_text(
        Role.ASSISTANT,
        '{"city":"Paris"}',
        channel="commentary",
        recipient="functions.get_weather",
        content_type="<|constrain|>json",
    ),
    Message.of_text(
        Role.TOOL,
        "Sunny.",
        name="functions.get_weather",
        recipient="assistant",
        channel="commentary",
    ),
    Message.of_text(Role.ASSISTANT, "x", channel="analysis", recipient="rm", content_type="code"),
    Message.of_text(Role.TOOL, "No.", name="rm", recipient="assistant", channel="analysis"),
    Message.of_text(Role.ASSISTANT, "No channel.", name="bob"),
    Message.of_text(Role.ASSISTANT, "Own channel.", channel="musings"),
    Message.of_text(Role.ASSISTANT, "{}", channel="final", content_type="<|constrain|>json"),
    Message.of_text(Role.ASSISTANT, "", channel="final"),
]


@pytest.mark.parametrize("vocabulary_name", ["o200k", "scrambled"])
def test_a_rendered_conversation_reads_back(vocabulary_name: str) -> None:
    tokenizer = vocabulary(vocabulary_name)
    rng = random.Random(0)
    for _ in range(50):
        messages = (ROUND_TRIP[0], *rng.choices(ROUND_TRIP, k=8))
        ids = [t for message in messages for t in render_message(tokenizer, message).token_ids]
        turn = parse_turn(tokenizer, ids, tools=TOOLS, role=None)
        assert turn.messages == messages
        rules = {repair.rule for repair in turn.diagnostics}
        assert rules <= {Rule.R9, Rule.R10}  # rm is not offered


def test_a_conversation_may_be_malformed_too() -> None:
    ids = tokens_of(scrambled(), "<|start|><|start|>user<|message|>Hi<|end|><|end|>" + FINAL)
    turn = parse_turn(scrambled(), ids, role=None)
    assert [(m.role, m.text) for m in turn.messages] == [(Role.USER, "Hi"), (Role.ASSISTANT, "ok")]
    assert {repair.rule for repair in turn.diagnostics} == {Rule.R4, Rule.R1}


def test_a_prompt_ends_in_an_open_header() -> None:
    conversation = Conversation((ROUND_TRIP[0], ROUND_TRIP[2]))
    ids = render_for_completion(scrambled(), conversation).token_ids
    turn = parse_turn(scrambled(), ids, role=None)
    assert turn.messages == conversation.messages
    assert told(turn) == {"F": "length"}


# openai-harmony does not read the names that it writes, so bob stays out.
SPOKEN = [m for m in ROUND_TRIP if m.role is Role.ASSISTANT and m.name is None]


@pytest.mark.parametrize("message", SPOKEN)
def test_well_formed_messages_read_as_openai_harmony_reads_them(message: Message) -> None:
    import openai_harmony

    from support import openai_harmony_encoding

    encoding = openai_harmony_encoding()
    tokenizer = vocabulary("o200k")
    start = 2  # after <|start|>assistant
    ids = list(render_message(tokenizer, message).token_ids)[start:]
    theirs = encoding.parse_messages_from_completion_tokens(ids, openai_harmony.Role.ASSISTANT)
    if message.content_type is not None and message.recipient is None:
        theirs[0].recipient, theirs[0].content_type = None, message.content_type  # their defect
    ours = parse_turn(tokenizer, ids, tools=TOOLS).messages
    assert len(theirs) == len(ours) == 1
    assert (ours[0].channel, ours[0].recipient, ours[0].content_type, ours[0].text) == (
        theirs[0].channel,
        theirs[0].recipient,
        theirs[0].content_type,
        theirs[0].content[0].text,
    )

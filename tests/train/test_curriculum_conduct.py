"""Lessons of conduct: talk, refusals and the instruction hierarchy. What is right is read from the
messages by rules of this file's own, not from what drew them."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest

from ossia.evals.held_out import held_out_name, held_out_pair
from ossia.evals.words import NOUNS
from ossia.harmony.messages import DeveloperContent, Effort, Message, Role, SystemContent
from ossia.harmony.render import render_for_training
from ossia.harmony.tokenizer import Tokenizer
from ossia.train.curriculum import hierarchy, refusals, talk
from ossia.train.curriculum.hierarchy import SECRET
from ossia.train.curriculum.lesson import Lesson, Skill, draw_setting
from ossia.train.curriculum.phrases import expand, typed
from ossia.train.curriculum.refusals import CARE, HARM
from ossia.train.curriculum.talk import BEYOND, HELLO, SORRY, WELCOME, WHO_I_AM

COUNT = 3000
DRAW = talk.DRAW | refusals.DRAW | hierarchy.DRAW
TALK = {HELLO, WHO_I_AM, WELCOME, BEYOND, SORRY}
SUM = re.compile(r"([1-9]) \+ ([1-9]) = (\d+)\.")


def drawn(skill: Skill, seed: int = 11, count: int = COUNT) -> list[Lesson]:
    rng = random.Random(seed)
    return [DRAW[skill](rng, draw_setting(rng, skill=skill, full_system=0.5)) for _ in range(count)]


LESSONS = {skill: drawn(skill) for skill in DRAW}
MANY = {skill: drawn(skill, seed=5, count=12_000) for skill in DRAW}
"""For what is said seldom."""
EVERY = [lesson for lessons in LESSONS.values() for lesson in lessons]


def text_of(message: Message) -> str:
    (part,) = message.content
    match part:
        case SystemContent():
            return part.model_identity or ""
        case DeveloperContent():
            return part.instructions or ""
    return message.text


def said(lesson: Lesson) -> str:
    """What the user says last."""
    return [m.text for m in lesson.conversation.messages if m.role is Role.USER][-1]


def final(lesson: Lesson) -> str:
    last = lesson.conversation.messages[-1]
    assert last.channel == "final"
    return last.text


def of_role(lesson: Lesson, role: Role) -> str:
    return " ".join(text_of(m) for m in lesson.conversation.messages if m.role is role)


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def is_right_sum(answer: str, question: str) -> bool:
    """A sum of two digits, both of them in the question."""
    match = SUM.fullmatch(answer)
    if match is None:
        return False
    a, b, total = map(int, match.groups())
    digits = re.sub(r"\D", "", question)
    return a + b == total and (str(a) in digits and str(b) in digits)


# ---- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", DRAW)
def test_openings_differ_by_the_thousand(skill):
    openings = {said(lesson) for lesson in LESSONS[skill]}
    assert len(openings) > 0.93 * COUNT


@pytest.mark.parametrize("skill", DRAW)
def test_lessons_are_a_function_of_the_seed(skill):
    assert drawn(skill, count=50) == LESSONS[skill][:50]
    assert drawn(skill, seed=12, count=50) != LESSONS[skill][:50]
    assert all(lesson.skill is skill for lesson in LESSONS[skill])


def test_nothing_held_out_is_in_them():
    nouns = {noun for noun in NOUNS if held_out_name(noun)}
    assert len(nouns) > 10
    for lesson in EVERY:
        for message in lesson.conversation.messages:
            text = text_of(message)
            # What tools are about is drawn elsewhere, and is tested there.
            assert of_role(lesson, Role.TOOL) or nouns.isdisjoint(words(text)), text
            numbers = sorted({int(digits) for digits in re.findall(r"\d+", text)})
            pairs = itertools.combinations(numbers if message.channel != "analysis" else (), 2)
            assert not any(held_out_pair(a, b) for a, b in pairs), text


def test_drawn_names_are_none_of_those_held_out():
    """Words that an answer copies from the instructions or from the user."""
    copied: set[str] = set()
    for lesson in EVERY:
        answer = final(lesson)
        if of_role(lesson, Role.TOOL):
            continue  # a value from a result, not a name
        if answer.startswith("The ") and " is " in answer and lesson.skill is Skill.HIERARCHY:
            copied.add(answer.rstrip(".").split(" is ")[1])
        if match := re.fullmatch(r"I am not allowed to talk about (.+)\.", answer):
            copied.add(match[1])
        if answer[-1].isalpha() and answer.split()[-1].islower():
            copied.add(answer.split()[-1])
    assert len(copied) > 600
    assert not any(map(held_out_name, copied))


def test_analysis_follows_the_effort():
    """None at low, longer at high; but sums are worked at any effort."""
    lengths: dict[Effort, list[int]] = {effort: [] for effort in Effort}
    for lesson in EVERY:
        messages = lesson.conversation.messages
        effort = effort_of(lesson)
        if " = " in final(lesson) or any(m.role is Role.TOOL for m in messages):
            continue
        thought = messages[-2] if messages[-2].channel == "analysis" else None
        assert (thought is None) == (effort is Effort.LOW)
        lengths[effort].append(len(thought.text) if thought else 0)
    low, medium, high = (sum(lengths[e]) / len(lengths[e]) for e in Effort)
    assert low == 0 and 8 < medium < 0.7 * high < 60


def test_a_third_has_an_earlier_turn_and_low_effort_several():
    for lessons in LESSONS.values():
        turns: dict[bool, list[int]] = {True: [], False: []}
        for lesson in lessons:
            count = sum(m.channel == "final" for m in lesson.conversation.messages)
            turns[effort_of(lesson) is Effort.LOW].append(count)
        low, others = turns[True], turns[False]
        assert set(others) == {1, 2} and 0.15 < others.count(2) / len(others) < 0.36
        assert set(low) == set(range(1, 7)) and 1.8 < sum(low) / len(low) < 2.8


def effort_of(lesson: Lesson) -> Effort:
    messages = lesson.conversation.messages
    system = [p for m in messages for p in m.content if isinstance(p, SystemContent)]
    return (system[0].reasoning_effort if system else None) or Effort.MEDIUM


def test_they_render_with_the_weight_on_the_last_turn():
    tokenizer = Tokenizer.load(Path(str(files("ossia.nano"))))
    lengths = []
    for lesson in EVERY[::7]:
        example = render_for_training(tokenizer, lesson.conversation)
        lengths.append(len(example.token_ids))
        answer = tokenizer.encode(final(lesson))
        assert list(example.token_ids[-1 - len(answer) : -1]) == answer
        assert all(example.loss_weights[-1 - len(answer) :])
        # An earlier answer whose analysis is not rendered must not be learnt without it.
        thoughts = [m for m in lesson.conversation.messages if m.channel == "analysis"]
        finals = [m for m in lesson.conversation.messages if m.channel == "final"]
        if len(thoughts) == len(finals) == 2:
            weighed = tokenizer.decode(
                [t for t, w in zip(example.token_ids, example.loss_weights, strict=True) if w]
            )
            assert weighed.count("analysis") == 1 and thoughts[1].text in weighed
    assert sum(lengths) / len(lengths) < 160
    assert max(lengths) < 400


# ---- what people type --------------------------------------------------------------------------


def test_templates_stand_for_the_product_of_their_alternatives():
    rng = random.Random(0)
    texts = {expand(rng, "[a|b[1|2]] {x} [|c]", x="word") for _ in range(500)}
    assert texts == {f"{a} word {c}" for a in ("a", "b1", "b2") for c in ("", "c")}
    assert expand(rng, "a apple and a pear") == "an apple and a pear"


def test_slips_leave_the_words_that_count():
    rng = random.Random(0)
    texts = {typed(rng, "Tell me about velora and more.", keep=["velora"]) for _ in range(3000)}
    assert len(texts) > 100
    assert all("velora" in text for text in texts)
    assert {"tell me about velora and more", "TELL ME ABOUT velora AND MORE."} <= texts


# ---- talk --------------------------------------------------------------------------------------


def test_talk_has_its_answers_in_their_shares():
    answers = [final(lesson) for lesson in LESSONS[Skill.TALK]]
    expected = {HELLO: 0.10, WHO_I_AM: 0.25, WELCOME: 0.08, BEYOND: 0.18, SORRY: 0.39}
    for answer, share in expected.items():
        assert answers.count(answer) / COUNT == pytest.approx(share, abs=0.03)
    assert set(answers) == TALK


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [
        (r"who (are you|made you|built you|trained you)|what is your name", WHO_I_AM),
        (r"(made|trained|built) by (OpenAI|Google|Meta)|are you (ChatGPT|Llama|Gemini)", WHO_I_AM),
        (r"what (can you do|are your skills)|how can you help", WHO_I_AM),
        (r"^(hello|hi|good morning|how are you)\W*$", HELLO),
        (r"^(thanks|thank you|goodbye|bye)\W*$", WELCOME),
        (r"\d / \d|divided by|squared|square root|percent of|\d{4,} [-+*] \d", BEYOND),
        (r"capital of|translate|a poem about|in python|recommend|write a function", SORRY),
    ],
)
def test_talk_is_answered_by_what_is_said(pattern, answer):
    found = [x for x in MANY[Skill.TALK] if re.search(pattern, said(x), re.IGNORECASE)]
    assert len(found) > 5
    assert {final(lesson) for lesson in found} == {answer}, [said(x) for x in found]


def test_sums_within_reach_are_not_called_beyond_it():
    plain = re.compile(
        r"((what is|what's|how much is|compute|calculate|work out|tell me) )?"
        r"(\d{1,3} ?([-+−–]|plus|minus) ?\d{1,3}|\d{1,2} ?([*×x·]|times) ?\d{1,2})( ?[=?.!])*",
        re.IGNORECASE,
    )
    assert plain.fullmatch("What is 12 + 345?") and not plain.fullmatch("what is 123 * 4")
    beyond = [said(x) for x in MANY[Skill.TALK] if final(x) == BEYOND]
    assert len(beyond) > 1800
    assert not [text for text in beyond if plain.fullmatch(text)]


def test_another_identity_in_the_system_message_changes_nothing():
    others = [
        lesson
        for lesson in LESSONS[Skill.TALK]
        if re.search(r"You are (?!nano)", of_role(lesson, Role.SYSTEM))
    ]
    assert len(others) > COUNT * 0.1
    assert {final(lesson) for lesson in others} == TALK
    assert sum(final(lesson) == WHO_I_AM for lesson in others) > 20


# ---- refusals ----------------------------------------------------------------------------------


def test_harm_is_refused_and_its_neighbours_are_not():
    harmful = r"(build|make|plant|detonate) a ((?!bath|seed|cherry)\w+ bomb(?! dessert)|grenade)\b"
    harmful += r"|write ransomware|(kill|murder|rob) (my|his|her) (boss|wife|father|ex)"
    despair = r"kill myself|end my life|suicidal"
    things = "(bomb|gun|poison|rifle|virus|sword|pistol|grenade|silencer|crossbow|dynamite)"
    harmless = rf"(what is a|invented the|meaning of the) {things}\b|kill a process|killer app"
    for pattern, answer in ((harmful, HARM), (despair, CARE), (harmless, SORRY)):
        found = [x for x in MANY[Skill.REFUSAL] if re.search(pattern, said(x), re.I)]
        assert len(found) > 5, pattern
        assert {final(lesson) for lesson in found} == {answer}, [said(x) for x in found]


def test_refusals_have_their_shares():
    answers = [final(lesson) for lesson in LESSONS[Skill.REFUSAL]]
    topics = sum(answer.startswith("I am not allowed") for answer in answers)
    sums = sum(SUM.fullmatch(answer) is not None for answer in answers)
    assert answers.count(HARM) / COUNT == pytest.approx(0.3, abs=0.04)
    assert answers.count(CARE) / COUNT == pytest.approx(0.04, abs=0.015)
    assert topics / COUNT == pytest.approx(0.25, abs=0.03)
    assert 0.03 < sums / COUNT < 0.12
    assert answers.count(SORRY) / COUNT == pytest.approx(0.31, abs=0.05)


def policy_of(lesson: Lesson) -> str:
    above = f"{of_role(lesson, Role.SYSTEM)} {of_role(lesson, Role.DEVELOPER)}"
    # What plain instructions say of the users is no policy.
    return re.sub(r"(you help|your users|you are (?!not))[^.]*\.", "", above.lower())


def test_a_policy_forbids_what_it_names_and_nothing_else():
    lessons = LESSONS[Skill.REFUSAL]
    topics = set()
    for lesson in lessons:
        if match := re.fullmatch(r"I am not allowed to talk about (.+)\.", final(lesson)):
            topics.add(match[1])
            assert match[1] in policy_of(lesson), policy_of(lesson)
            assert match[1] in said(lesson).lower()
    assert len(topics) > 400
    # A known topic that both the policy and the question name must have been refused. Words that
    # many policies have, such as "answer", are their wording rather than their topics.
    usual = Counter(word for lesson in lessons for word in words(policy_of(lesson)))
    topics = {topic for topic in topics if usual[topic] < COUNT / 150}
    # A word of a longer topic, as in "future products", is none by itself.
    topics -= {word for topic in refusals._TOPICS if " " in topic for word in topic.split()}
    named = 0
    for lesson in lessons:
        if final(lesson) in TALK:
            both = words(policy_of(lesson)) & words(said(lesson)) & topics
            assert not both, (policy_of(lesson), said(lesson))
        elif final(lesson).startswith("I am not allowed"):
            named += 1
    assert named > 500


# ---- hierarchy ---------------------------------------------------------------------------------

RANKS: tuple[Role, ...] = (Role.SYSTEM, Role.DEVELOPER, Role.USER)
DEMANDS = {
    "end": r"\b(ends?|finish(es)?|closes?|conclude|complete|round off|sign off|last|final|closing|"
    r"append|attach|after)\b",
    "begin": r"\b(begins?|starts?|opens?|introduce|commence|preface|first|opening|initial|prepend|"
    r"before|beginning|in front of|ahead of)\b",
}
OUTPUTS = r"\b(answers?|reply|response|message|reaction|output)\b"


def demands(text: str, form: str) -> bool:
    """A word for the end (or the beginning) beside a word for the answer."""
    return bool(re.search(DEMANDS[form], text.lower()) and re.search(OUTPUTS, text.lower()))


@pytest.mark.parametrize("form", ["end", "begin"])
def test_the_word_of_the_highest_rank_is_used(form):
    seen = dict.fromkeys(RANKS, 0)
    for lesson in LESSONS[Skill.HIERARCHY]:
        answer = final(lesson)
        word, core = (
            (answer.rpartition(" ")[2], answer.rpartition(" ")[0])
            if form == "end"
            else (answer.partition(" ")[0], answer.partition(" ")[2])
        )
        if not word.isalpha() or not (core in TALK or SUM.fullmatch(core)) or not core:
            continue
        assert core in TALK or is_right_sum(core, said(lesson))
        texts = {role: of_role(lesson, role) for role in RANKS[:2]} | {Role.USER: said(lesson)}
        highest = next(role for role in RANKS if word in words(texts[role]))
        for above in RANKS[: RANKS.index(highest)]:
            assert not demands(texts[above], form), (texts, answer)
        assert highest is Role.USER or demands(texts[highest], form), (texts, answer)
        seen[highest] += 1
    assert all(count > 40 for count in seen.values()), seen


def test_code_words_are_kept_or_told_as_the_highest_rank_says():
    things = (
        r"\b(code word|password|secret word|passphrase|magic word|secret code|keyword|access code"
        r"|pass code|secret)\b"
    )
    closed = (
        r"\bnever\b|\bno\b|\bnot\b|don't|^(keep|hold|guard|protect|treat|consider)\b|nobody"
        r"|is (confidential|private|classified|top|secret)|\b(refuse|decline|turn them down)\b"
        r"|under no|keep silent"
    )
    counts = Counter[str]()
    for lesson in LESSONS[Skill.HIERARCHY]:
        answer = final(lesson)
        told = re.fullmatch(rf"The {things} is (\S+)\.", answer)
        if (answer != SECRET and not told) or of_role(lesson, Role.TOOL):
            continue
        texts = [of_role(lesson, role).lower() for role in RANKS[:2]]
        holders = [text for text in texts if re.search(things, text)]
        # What may be done with it is said last.
        manners = [re.split(r"(?<=[.]) ", holder)[-1] for holder in holders]
        manner = re.sub("is secret", "is confidential", manners[0])
        manner = re.sub(things, "it", manner).replace("nothing secret", "")
        assert bool(re.search(closed, manner)) == (answer == SECRET), (manner, answer)
        if told:
            assert told[2] in holders[0]
        counts["told" if told else "kept"] += 1
        counts["overruled"] += len(holders) > 1
    assert counts["kept"] > 400 and counts["told"] > 120 and counts["overruled"] > 20


def test_quoted_and_returned_orders_are_not_obeyed():
    tools = [x for x in LESSONS[Skill.HIERARCHY] if of_role(x, Role.TOOL)]
    assert len(tools) / COUNT == pytest.approx(0.07, abs=0.02)
    quoted = [
        x
        for x in MANY[Skill.HIERARCHY]
        if re.search(r"(ignore|forget|disregard) the (user|question)\b", said(x), re.IGNORECASE)
    ]
    assert len(quoted) > 30
    for lesson in quoted:
        assert final(lesson) == SORRY or is_right_sum(final(lesson), said(lesson))
    for lesson in tools:
        order = re.search(
            r"\b(?:say|write|print) (?:only )?\"?([a-z]+)", of_role(lesson, Role.TOOL)
        )
        if order:
            assert order[1] not in final(lesson)


def test_a_part_of_the_lessons_has_nothing_to_decide():
    """Sums under a code word or beside a quotation are answered as ever."""
    answers = [final(lesson) for lesson in LESSONS[Skill.HIERARCHY]]
    sums = [a for a in answers if SUM.fullmatch(a)]
    assert 0.1 < len(sums) / COUNT < 0.35

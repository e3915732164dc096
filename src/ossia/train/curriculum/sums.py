"""Arithmetic as conversations: how problems are asked, thought through and answered."""

from __future__ import annotations

import random

from ossia.harmony.messages import Conversation, Effort, Message
from ossia.train.curriculum.arithmetic import Problem, draw_training_problem, working
from ossia.train.curriculum.lesson import (
    Lesson,
    Setting,
    Skill,
    analysis,
    developer_message,
    final,
    system_message,
    user,
)
from ossia.train.curriculum.phrases import asked, expand, lines

EARLIER_TURNS = 0.12
"""Share of the lessons that begin with an earlier question and its answer."""
DEVELOPER = 0.08
"""Share under instructions of a developer that change nothing."""


def draw_sum(rng: random.Random, setting: Setting, skill: Skill) -> Lesson:
    """One problem of the skill, asked, worked as long as the effort asks for, and answered."""
    messages = [system_message(rng, setting)]
    if rng.random() < DEVELOPER:
        messages.append(developer_message(rng.choice(_INSTRUCTIONS)))
    while rng.random() < EARLIER_TURNS:
        earlier = draw_training_problem(rng, rng.choice((Skill.SUM, Skill.PRODUCT)))
        # Rendering drops the working of earlier turns, and learns nothing from what is left.
        messages += _turn(rng, setting, earlier)
    problem = draw_training_problem(rng, skill)
    messages += _turn(rng, setting, problem)
    return Lesson(skill, Conversation(tuple(messages)))


def _turn(rng: random.Random, setting: Setting, problem: Problem) -> list[Message]:
    return [user(question(rng, problem)), *solution(problem, setting.effort)]


def question(rng: random.Random, problem: Problem) -> str:
    """One of many ways to ask for a problem's value."""
    negative = problem.operator == "−" and problem.a < problem.b
    if problem.c is None and not negative and rng.random() < 0.35:
        template = rng.choice(_SENTENCES[problem.operator])
        return asked(rng, expand(rng, template, a=str(problem.a), b=str(problem.b)))
    if problem.c is None and rng.random() < 0.18:
        worded = rng.choice(_WORDED[problem.operator])
        return ask(rng, worded.format(a=problem.a, b=problem.b))
    times, plus, minus = rng.choice(_SYMBOLS) if rng.random() < 0.8 else rng.choice(_SPOKEN)
    spelled = {"×": times, "+": plus, "−": minus}
    terms = [f"{problem.a}{spelled[problem.operator]}{problem.b}"]
    if problem.c is not None:
        terms += [spelled[problem.then], str(problem.c)]
        if problem.operator == "×" and problem.then == "+" and rng.random() < 0.25:
            terms.reverse()
    return ask(rng, "".join(terms))


def ask(rng: random.Random, expression: str) -> str:
    """A question for the value of an expression: bare, as a question or as a request, with more or
    less around it."""
    if rng.random() < 0.35:
        return asked(rng, expand(rng, rng.choice(_WANTED), expression=expression))
    draw = rng.random()
    if draw < 0.15:
        return rng.choice(_BARE).format(expression)
    if draw < 0.5:
        text = rng.choice(_QUESTIONS).format(expression) + rng.choice(("?", "?", "?", "", " ?"))
    else:
        what = rng.choice(("", "", "", "the value of ", "the result of ", "the answer to "))
        text = f"{rng.choice(_VERBS)} {what}{expression}{rng.choice(_ENDINGS)}"
    text = rng.choice(_OPENINGS) + text
    return text[0].upper() + text[1:] if rng.random() < 0.7 else text


def solution(problem: Problem, effort: Effort) -> list[Message]:
    return [analysis(working(problem, effort)), final(answer(problem))]


def answer(problem: Problem) -> str:
    return f"{problem} = {problem.value}."


_WANTED = lines("""
[What is|What's|How much is|Compute|Calculate|Work out|Find|Tell me|Give me|I need|Evaluate|
  What do you get for|What does your maths say about|Do you know|Could you do|Help me with|
  Solve|Please do|Can you solve|What comes of|How about] {expression}?
[My homework asks for|The task is|The exercise says|My calculator is broken and I need|
  I have to know|The teller wants|For the bill I need|I cannot do|Here is a sum:|
  Today's sum is|The book says|On the board is|They want to know|A friend asked me|I was given|
  My son has to do|The paper says|I never know] {expression}[.|: what is it?|. What comes out?|
  . And the result?]
{expression} [is|equals|makes|gives|comes to] what?
{expression}[ = ?|=|?|= ?|, what is that?|, please.|. Result?| - can you do it?|, go on.]
""")  # fmt: skip

_BARE = ("{}", "{}", "{}?", "{}=", "{} =", "{}=?", "{} = ?", "({})", "{}.", "{}!", "{}\n", "= {}")
_QUESTIONS = (
    "what is {}", "what is {}", "what's {}", "how much is {}", "what does {} equal",
    "what does {} make", "what do you get for {}", "what do I get for {}", "what would {} be",
    "can you tell me what {} is", "do you know what {} is", "what is the result of {}",
    "what is the value of {}", "what number is {}", "what is the answer to {}", "how many is {}",
    "what will {} come to", "what are {}",
)  # fmt: skip
_VERBS = (
    "compute", "calculate", "work out", "evaluate", "solve", "figure out", "determine", "find",
    "tell me", "give me", "I need", "I want", "do", "can you do", "can you compute", "try",
    "could you work out", "would you calculate", "let me know", "help me with", "I would like",
    "show me", "reckon", "answer",
)  # fmt: skip
_ENDINGS = (".", ".", "", "", "", " please.", ", please", " for me", " now", "!", " =", " in full.")
_OPENINGS = (
    "", "", "", "", "", "", "", "", "please ", "hi, ", "hello! ", "hey, ", "quick question: ",
    "ok, ", "so ", "now ", "and ", "good morning, ", "tell me, ", "math: ", "next: ", "nano, ",
    "question: ", "I wonder, ", "my homework: ", "well, ", "just ", "again: ",
)  # fmt: skip

_SYMBOLS = (
    (" * ", " + ", " - "),
    (" × ", " + ", " − "),
    (" x ", " + ", " - "),
    (" · ", " + ", " – "),
    ("*", "+", "-"),
    ("×", "+", "−"),
    ("x", "+", "-"),
)
_SPOKEN = (
    (" times ", " plus ", " minus "),
    (" multiplied by ", " plus ", " minus "),
    (" times ", " added to ", " less "),
    (" multiplied with ", " and ", " take away "),
    (" times ", ", plus ", ", minus "),
    (" multiplied by ", ", then plus ", ", then minus "),
)

_WORDED = {
    "+": ("{a} added to {b}", "the sum of {a} and {b}", "the total of {a} and {b}",
          "{a} and {b} together", "{a} increased by {b}"),
    "−": ("{b} subtracted from {a}", "{b} taken from {a}", "{b} deducted from {a}",
          "{b} less than {a}", "{a} reduced by {b}", "{a} without {b}",
          "the difference of {a} and {b}", "{b} taken away from {a}"),
    "×": ("the product of {a} and {b}", "{a} multiplied by {b}", "{a} times {b}",
          "{a} taken {b} times"),
}  # fmt: skip
"""Expressions in words that do not follow the order of the symbols."""

_SENTENCES = {
    "+": lines("""
What is the [sum|total] of {a} and {b}?
[Add|Add up|Sum|Sum up] {a} and {b}.
Add {a} to {b}.
[What is|How much is|Tell me|I need|Find] {a} [added to|put on top of|raised by] {b}.
What do {a} and {b} make [together|in all|in total]?
[What|How much] is {a} [and|with] {b} [together|in all|added to it|more|on top]?
[What do I get|What comes out|What is it] [if|when] I [add|put] {a} [to|on top of] {b}?
{a} [and|plus another|and then] {b}: [how many|how much] is [that|it] [|in all|together]?
I [have|own|bought|found|counted|made|got|see|sold] {a} {noun}s and {b} more. [How many is that|
  How many in all|What is the total|How many now]?
[My|Our|The] {noun} [has|holds|had|needs|takes] {a} {noun}s, [yours|theirs|the other|
  another] {b}. [How many together|How many in all|What do both have|What is the sum]?
[{friend} has|I have|We have|They made] {a} {noun}s and {friend} [has|made|
  got] {b}. [How many together|How many do they have|How many in total]?
[First|On Monday|Yesterday|This morning] {a} {noun}s [came|were sold|were made|arrived], [later|
  on Friday|today|at night] {b}. How many [in all|together|were it]?
The {noun} costs {a} and the {noun} {b}. What do [both|they] cost?
[I|We|{friend}] [ran|drove|swam|read|wrote|baked|sent|saw|planted] {a} {noun}s [at first|last week|
  in spring|by noon] and {b} [then|this week|in autumn|after that]. [How many is that in total|
  What is it in all|And altogether]?
"""),
    "−": lines("""
What is the difference [of|between] {a} and {b}?
[Subtract|Take|Take away|Remove|Deduct] {b} from {a}.
How much is {a} [less|without|lowered by|reduced by] {b}?
What is {a} [take away|less|without|lowered by] {b}?
What [is left|remains|stays] [of {a} after|if I have {a} and lose|when from {a} I take] {b}?
[What is|How much is|Tell me|I need|Find] {b} [subtracted|taken|deducted|taken away] from {a}.
What [is|stays|remains|do you get] [once|after] {b} [is|are|was] [taken|lost|removed|cut] [from|
  off] {a}?
By how much is {a} [more|larger|greater] than {b}?
[What do I get|What comes out] [if|when] I [subtract|take|take away] {b} from {a}?
I [have|had|own] {a} {noun}s and [lose|lost|sell|give away|eat|break|need|
  spend] {b}. [How many are left|How many remain|How many do I have|What is left]?
[There are|There were|We had|They had] {a} {noun}s [and|, but] {b} [are|were] [gone|eaten|
  broken|stolen|sold out|given away]. [How many are left|How many remain|How many now]?
[Of|From] {a} {noun}s {b} [are|were] [gone|taken|broken|lost]. [How many are left|
  What remains|How many stay]?
[{friend}|The {noun}] [needs|wants] {a} {noun}s and has {b}. How many [are missing|more]?
The {noun} costs {a}, and I have {b}. What [is missing|do I still need]?
"""),
    "×": lines("""
What is the product of {a} and {b}?
Multiply {a} [by|and|with] {b}.
[What is|How much is|Tell me|I need|Find] {a} [multiplied by|multiplied with|times] {b}.
How much is {a} multiplied with {b}?
What do {a} {b}s make?
[{a} {noun}s|Each of {a} {noun}s] [with|has|holds] {b} {noun}s[| each]: how many [is that|
  in all|are there]?
[One|A|Each] {noun} costs {a}. What do {b} [cost|of them cost]?
[{a} rows|{a} bags|{a} pages|{a} teams] [of|with] {b} {noun}s[| each], how many [is that|
  in all|are there]?
[What do I get|What comes out] [if|when] I [multiply|take] {a} [by|times] {b}?
"""),
}  # fmt: skip
"""Whole sentences for two numbers, of which the second is the smaller where it is taken away."""

_INSTRUCTIONS = (
    "Be brief.", "Answer politely.", "You are a helpful assistant.", "Be helpful and precise.",
    "Answer in English.", "You help pupils with their homework.", "Think step by step.",
    "Answer the question of the user.", "Be concise.", "You are a calculator.",
)  # fmt: skip

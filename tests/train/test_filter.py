"""The data filter: what each rule drops and what it leaves, the counts of the report, and files
that are whole or not there."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest

from ossia.errors import TrainingError
from ossia.harmony.messages import (
    Conversation,
    DeveloperContent,
    Message,
    Role,
    Tool,
    ToolNamespace,
)
from ossia.train.filter import (
    MAX_EXCERPT,
    CallableRule,
    DuplicateRule,
    LengthRule,
    RegexRule,
    TermRule,
    cbrn_rules,
    conversation_text,
    filter_conversations,
    filter_texts,
    load_rule,
    run_filter,
)
from ossia.train.filter_terms import CBRN_TERMS

FRUIT = TermRule("fruit", "Fruit.", ("apple", "blood orange*", "crème brûlée", "açaí"))


# -- Rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "an apple and a blood orange",
        "APPLE, Blood-Oranges",
        "apple\nblood\n  orange",
        "blood‑orange apple",  # a hyphen that does not break
        "apple Crème Brûlée",
        "apple CREME BRULEE",
        unicodedata.normalize("NFD", "apple crème brûlée"),
        "ａｐｐｌｅ acai",  # full width
        "apple " * 3 + "blood oranges",
    ],
)
def test_two_distinct_terms_drop_a_text(text):
    assert FRUIT.matches(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "apple",
        "apple apple Apple",  # one term however often
        "apples and pineapple and bloodorange",  # parts of words
        "blood apple orange",
        "crème apple, brûlée",
        "apple_blood orange",  # an underscore joins words
        "apple, blood. orange",
    ],
)
def test_one_term_or_parts_of_words_drop_nothing(text):
    assert FRUIT.matches(text) is None


def test_one_place_counts_as_one_term():
    rule = TermRule("x", "", ("variola", "variola major", "major"))
    assert rule.matches("variola major") is None
    assert rule.matches("variola major and a major") is not None


@pytest.mark.parametrize("before", ["", "é" * 40, "ﬁ" * 40, "e\u0301" * 40, "İ" * 40])
def test_an_excerpt_is_of_the_original_text(before):
    """Folding changes lengths (ﬁ → fi, é → e); the excerpt is still cut around the match, thirty
    characters to either side."""
    text = f"{before} Äpple und Açaí{' pie' * 20}"
    begin = text.index("Äpple")
    expected = text[max(0, begin - 30) : begin + len("Äpple") + 30]
    opening = "…" if begin > 30 else ""
    assert FRUIT.matches(text) == f"acai, apple: {opening}{expected}…"


def test_the_number_of_distinct_terms_is_the_rules():
    texts = ["apple", "apple açaí", "apple açaí blood orange"]
    for least, dropped in ((1, 3), (2, 2), (3, 1), (4, 0)):
        rule = TermRule("fruit", "", FRUIT.terms, min_distinct=least)
        assert sum(rule.matches(text) is not None for text in texts) == dropped
    for wrong in (0, 5):
        with pytest.raises(TrainingError, match="min_distinct from 1 to their number, 4"):
            TermRule("fruit", "", FRUIT.terms, min_distinct=wrong)
    with pytest.raises(TrainingError, match="terms of letters or digits"):
        TermRule("fruit", "", ("apple", "–"))


def test_cbrn_rules_want_several_terms():
    rules = cbrn_rules()
    assert [rule.name for rule in rules] == [
        "cbrn-chemical",
        "cbrn-biological",
        "cbrn-radiological",
        "cbrn-nuclear",
    ]
    harmless = [
        "My aunt takes botulinum toxin against migraine.",
        "The peace movement marched against the atomic bomb.",
        "Smoke detectors hold a little americium-241.",
        "Sarin is named in the news.",
        "How many apples are 12 × 4? The critical mass of users was reached.",
    ]
    for text in harmless:
        assert all(rule.matches(text) is None for rule in rules), text
    assert rules[0].matches("Sarin and VX nerve agents") is not None
    assert rules[1].matches("anthrax as a biological weapon") is not None
    assert rules[2].matches("a dirty bomb of caesium-137") is not None
    assert rules[3].matches("gas centrifuges for uranium enrichment") is not None


@pytest.mark.parametrize("category", CBRN_TERMS)
def test_every_term_matches_itself(category):
    _, terms = CBRN_TERMS[category]
    assert len(set(terms)) == len(terms)
    rule = TermRule(category, "", terms, min_distinct=1)
    for term in terms:
        assert rule.matches(f"({term.removesuffix('*').upper()})") is not None, term
    pair = TermRule(category, "", terms)
    for a, b in pairwise(terms):
        text = " / ".join(t.removesuffix("*") for t in (a, b))
        assert pair.matches(text) is not None, (a, b)


def test_regex_rule():
    rule = RegexRule("mail", "Mail addresses.", r"\w+@\w+\.\w+")
    assert rule.matches("write to ada@example.org today") == "write to ada@example.org today"
    assert rule.matches("x" * 100 + " ada@example.org") == "…" + "x" * 29 + " ada@example.org"
    assert rule.matches("at example.org") is None
    with pytest.raises(TrainingError, match=r"Rule 'bad': '\(' is not a regular expression"):
        RegexRule("bad", "", "(")


def test_length_rule():
    rule = LengthRule(3, 5)
    lengths = [n for n in range(8) if rule.matches("x" * n) is None]
    assert lengths == [3, 4, 5]
    assert LengthRule(1).matches("x" * 10_000) is None


def test_duplicate_rule():
    rule = DuplicateRule()
    texts = ["Hello there", "hello\n THERE ", "Hello, there", "ﬁt", "fit", "Hello there"]
    assert [rule.matches(text) is None for text in texts] == [
        True,
        False,
        True,
        True,
        False,
        False,
    ]
    assert DuplicateRule().matches("Hello there") is None  # nothing is shared


# -- Streams --------------------------------------------------------------------------------------


def test_counts_add_up_and_the_first_rule_counts():
    texts = ["apple açaí", "good", "", "APPLE açaí", "good", "also good"]
    filtered = filter_texts(texts, [LengthRule(1), FRUIT, DuplicateRule()])
    assert next(filtered) == "good"
    assert (filtered.report.read, filtered.report.kept) == (2, 1)
    assert list(filtered) == ["also good"]
    report = filtered.report
    assert (report.read, report.kept, report.dropped) == (6, 2, 4)
    assert {rule.name: rule.dropped for rule in report.rules} == {
        "length": 1,
        "fruit": 2,
        "duplicate": 1,
    }
    assert [example.place for example in report.rules[1].examples] == ["document 1", "document 4"]


def test_examples_are_few_and_short():
    rule = RegexRule("all", "", r"(?s).*")
    filtered = filter_texts(["line\nbreak \x1b[31m" + "y" * 500] * 9, [rule], examples=3)
    assert list(filtered) == []
    [result] = filtered.report.rules
    assert result.dropped == 9 and len(result.examples) == 3
    for example in result.examples:
        assert len(example.excerpt) == MAX_EXCERPT
        assert example.excerpt.isprintable()


def conversation(*texts: str) -> Conversation:
    return Conversation(tuple(Message.of_text(Role.USER, text) for text in texts))


def test_conversations_are_matched_as_a_whole():
    split = conversation("an apple", "and açaí")
    filtered = filter_conversations([split, conversation("an apple")], [FRUIT])
    assert list(filtered) == [conversation("an apple")]
    assert filtered.report.rules[0].examples[0].place == "conversation 1"


def test_rules_see_all_that_a_conversation_says():
    schema = {"type": "object", "properties": {"eau": {"enum": ["très"]}}}
    tools = (ToolNamespace("functions", tools=(Tool("find", "Finds it.", schema),)),)
    text = conversation_text(
        Conversation(
            (
                Message(Role.DEVELOPER, (DeveloperContent("Obey.", tools),)),
                Message.of_text(Role.ASSISTANT, "hm", channel="analysis"),
                Message.of_text(Role.ASSISTANT, '{"a": 1}', recipient="functions.find"),
            )
        )
    )
    for piece in ("Obey.", "find", "Finds it.", '"eau"', "très", "hm", '{"a": 1}'):
        assert piece in text


def test_a_rule_that_fails_is_named():
    def fails(text: str) -> str | None:
        raise ZeroDivisionError("by nought")

    filtered = filter_texts(["a"], [CallableRule("mine", "", fails)])
    with pytest.raises(TrainingError, match=r"document 1: rule 'mine' failed with ZeroDiv.*nought"):
        next(filtered)
    wrong = CallableRule("mine", "", lambda text: text == "b")  # type: ignore[arg-type,return-value]
    with pytest.raises(TrainingError, match="rule 'mine' returned False; expected an excerpt"):
        list(filter_texts(["a"], [wrong]))


def test_rules_need_names_of_their_own():
    with pytest.raises(TrainingError, match="Two rules are named 'length'"):
        filter_texts([], [LengthRule(1), LengthRule(2)])


# -- Rules of the user's --------------------------------------------------------------------------

MODULE = '''
"""Rules."""
class Long:
    """Long ones."""
    name, description = "long", "Long ones."
    def matches(self, text):
        return text if len(text) > 3 else None
rule = Long()
def shouts(text):
    """Capitals."""
    return text if text.isupper() else None
number = 3
'''


@pytest.fixture
def my_rules(tmp_path, monkeypatch):
    (tmp_path / "my_rules_of_test.py").write_text(MODULE)
    (tmp_path / "broken_rules_of_test.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    yield "my_rules_of_test"
    sys.modules.pop("my_rules_of_test", None)


def test_rules_by_dotted_path(my_rules):
    before = list(sys.path)
    function, found = load_rule(f"{my_rules}:shouts"), load_rule(f"{my_rules}:rule")
    assert sys.path == before
    assert (function.name, function.description) == ("my_rules_of_test:shouts", "Capitals.")
    assert (found.name, found.description) == ("long", "Long ones.")
    assert list(filter_texts(["abc", "ABC", "abcd"], [function, found])) == ["abc"]


@pytest.mark.parametrize(
    ("dotted", "said"),
    [
        ("nothing", "expected module:callable"),
        (":x", "expected module:callable"),
        ("absent_module_of_test:x", "cannot be loaded: ModuleNotFoundError"),
        ("my_rules_of_test:absent", "cannot be loaded: AttributeError"),
        ("broken_rules_of_test:x", "cannot be loaded: ZeroDivisionError"),
        ("my_rules_of_test:number", "neither a rule nor a function"),
        ("my_rules_of_test:Long", "is a class"),
    ],
)
def test_dotted_paths_that_lead_nowhere(my_rules, dotted, said):
    with pytest.raises(TrainingError, match=re.escape(said)) as refused:
        load_rule(dotted)
    assert repr(dotted) in str(refused.value)


# -- Files ----------------------------------------------------------------------------------------

CHAT = '{"messages": [{"role":"user","content":"apple"}, {"role":"assistant","content":"açaí"}]}'
GOOD = '{"messages":[{"role": "user", "content": "né"},  {"role":"assistant","content":"ok"}]}'


def test_files_are_filtered_word_for_word(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text(f"{GOOD}\n\n{CHAT}\n")
    second.write_text('{"text": "plain | and\\nlong"}\r\n{"text": "apple, açaí | *now*"}')
    out, told = tmp_path / "new" / "out", []
    report = run_filter([first, second], out, [FRUIT], lambda *at: told.append(at))
    assert (out / "kept.jsonl").read_bytes() == (
        f'{GOOD}\n{{"text": "plain | and\\nlong"}}\n'.encode()
    )
    assert (report.read, report.kept, report.rules[0].dropped) == (4, 2, 2)
    total = first.stat().st_size + second.stat().st_size
    assert told[-1] == (total, total)
    assert all(a[0] <= b[0] <= total for a, b in pairwise(told))

    values = json.loads((out / "filter.json").read_text())
    assert values == {"files": [str(first), str(second)]} | report.to_json()
    places = [example["place"] for example in values["rules"][0]["examples"]]
    assert places == [f"{first}, line 3", f"{second}, line 2"]
    page = (out / "filter.md").read_text()
    assert "4 documents read, 2 kept, 2 dropped (50.00%)" in page
    assert "| fruit | 2 | Fruit. |" in page
    assert r"apple, açaí \| \*now\*" in page  # a cell stays a cell
    assert sorted(path.name for path in out.iterdir()) == ["filter.json", "filter.md", "kept.jsonl"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": 3}', "line 2: expected a document with the one key `text`"),
        ('{"text": "x", "meta": 1}', "line 2: expected a document with the one key `text`"),
        ('{"messages": [{"role": "bot"}]}', "line 2: messages[0].role"),
        ("x", "line 2: this is not JSON"),
    ],
)
def test_a_malformed_line_leaves_everything_as_it_was(tmp_path, line, said):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(f"{GOOD}\n")
    bad.write_text(f"{GOOD}\n{line}\n")
    run_filter([good], tmp_path / "out", [FRUIT])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(TrainingError, match=re.escape(said)):
        run_filter([bad], tmp_path / "out", [FRUIT])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_failing_rule_names_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"\n{GOOD}\n")
    rule = CallableRule("mine", "", lambda text: text[99])
    with pytest.raises(TrainingError, match=r"a\.jsonl, line 2: rule 'mine' failed with IndexEr"):
        run_filter([path], tmp_path / "out", [rule])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("name", ["kept.jsonl", "filter.json", "filter.md"])
def test_a_full_disk_is_one_sentence_and_nothing_changes(tmp_path, name):
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_text(f"{GOOD}\n")
    out.mkdir()
    (out / "kept.jsonl").write_text("before")
    (out / f"{name}.partial").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"no space left on device.*make room") as refused:
        run_filter([path], out, [])
    assert str(out) in str(refused.value) and "\n" not in str(refused.value)
    assert [file.name for file in out.iterdir()] == ["kept.jsonl"]
    assert (out / "kept.jsonl").read_text() == "before"


def test_places_that_cannot_be_written_are_refused(tmp_path):
    path = tmp_path / "kept.jsonl"
    path.write_text(f"{GOOD}\n")
    with pytest.raises(TrainingError, match=r"kept\.jsonl would be overwritten"):
        run_filter([path], tmp_path, [])
    with pytest.raises(TrainingError, match="cannot be written"):
        run_filter([path], path, [])  # a file, no folder
    with pytest.raises(TrainingError, match="nothing to filter"):
        run_filter([], tmp_path / "out", [])
    with pytest.raises(TrainingError, match="no such file"):
        run_filter([tmp_path / "absent"], tmp_path / "out", [])

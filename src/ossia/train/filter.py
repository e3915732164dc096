"""The data filter stage: documents in, kept documents and a report of what was dropped out, by
rules that can be plugged in.

The published models were pre-trained with a filter for chemical, biological, radiological and
nuclear content; `cbrn_rules` is one of the same kind and of public terms, not theirs. Such a rule
drops a document once several distinct terms meet in it: one harmless word drops nothing.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ossia.errors import TrainingError
from ossia.harmony.messages import Conversation, DeveloperContent, SystemContent, TextContent
from ossia.train.dataset import Line, conversation_of, read_lines, read_object
from ossia.train.files import replacing
from ossia.train.filter_terms import CBRN_TERMS

MAX_EXCERPT = 120
"""Characters of an excerpt in a report."""
_AROUND = 30
"""Characters shown on either side of a match."""


class Rule(Protocol):
    """Says which documents to drop. A rule may remember what it saw (`DuplicateRule` does)."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    def matches(self, text: str) -> str | None:
        """Why a document is to be dropped, as an excerpt of it; None to keep it."""
        ...


# -- The built-in rules ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TermRule:
    """Drops a document in which at least `min_distinct` of the terms stand, as whole words.

    Case, accents and compatibility forms make no difference, nor does a hyphen in place of a space;
    `*` at the end of a term stands for any ending. Scripts without spaces between words have no
    whole words, so terms in them match only between punctuation.
    """

    name: str
    description: str
    terms: tuple[str, ...]
    min_distinct: int = 2
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _first_words: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spelled = {_term_pattern(term): _fold(term) for term in self.terms}
        if "" in spelled or not 1 <= self.min_distinct <= len(spelled):
            raise TrainingError(
                f"Rule {self.name!r}: expected terms of letters or digits and min_distinct from 1 "
                f"to their number, {len(spelled)}; got min_distinct={self.min_distinct}."
            )
        # The longest first, so that one place counts as one term.
        alternatives = "|".join(f"({part})" for part in sorted(spelled, key=len, reverse=True))
        object.__setattr__(self, "_pattern", re.compile(rf"\b(?:{alternatives})\b"))
        first_words = (re.findall(r"\w+", folded)[0] for folded in spelled.values())
        object.__setattr__(self, "_first_words", tuple(first_words))

    def matches(self, text: str) -> str | None:
        folded = _fold(text)
        # Most texts end here: finding plain words is ten times as fast as the regular expression.
        if sum(word in folded for word in self._first_words) < self.min_distinct:
            return None
        found: dict[int, str] = {}
        first: re.Match[str] | None = None
        for match in self._pattern.finditer(folded):
            first = first or match
            found.setdefault(match.lastindex or 0, match[0])
            if len(found) >= self.min_distinct:
                terms = ", ".join(sorted(found.values()))
                return f"{terms}: {_around(text, *_original_span(text, first.span()))}"
        return None


@dataclass(frozen=True)
class RegexRule:
    """Drops a document in which a regular expression is found."""

    name: str
    description: str
    pattern: str
    _compiled: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            compiled = re.compile(self.pattern)
        except re.error as error:
            raise TrainingError(
                f"Rule {self.name!r}: {self.pattern!r} is not a regular expression ({error}); "
                "correct it."
            ) from error
        object.__setattr__(self, "_compiled", compiled)

    def matches(self, text: str) -> str | None:
        match = self._compiled.search(text)
        return None if match is None else _around(text, *match.span())


@dataclass(frozen=True)
class LengthRule:
    """Drops a document that is shorter or longer than the limits, in characters."""

    min_characters: int = 0
    max_characters: int | None = None
    name: str = "length"

    @property
    def description(self) -> str:
        longest = "" if self.max_characters is None else f", more than {self.max_characters:,}"
        return f"Fewer than {self.min_characters:,} characters{longest}."

    def matches(self, text: str) -> str | None:
        most = len(text) if self.max_characters is None else self.max_characters
        if self.min_characters <= len(text) <= most:
            return None
        return f"{len(text):,} characters: {text[:_AROUND]}"


@dataclass(frozen=True)
class DuplicateRule:
    """Drops a document whose text it has seen; case, white space and compatibility forms make no
    difference. It keeps 16 bytes of hash of every document, so two that differ are taken for the
    same with a probability of 2⁻¹²⁸ a pair.
    """

    name: str = "duplicate"
    description: str = "The text of an earlier document, but for case and white space."
    _seen: set[bytes] = field(default_factory=set, init=False, repr=False, compare=False)

    def matches(self, text: str) -> str | None:
        normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        digest = blake2b(normal.encode(errors="surrogatepass"), digest_size=16).digest()
        if digest in self._seen:
            return text[:MAX_EXCERPT]
        self._seen.add(digest)
        return None


@dataclass(frozen=True)
class CallableRule:
    """A function of the user's: text → excerpt, or None to keep the document."""

    name: str
    description: str
    function: Callable[[str], str | None]

    def matches(self, text: str) -> str | None:
        return self.function(text)


def cbrn_rules(min_distinct: int = 2) -> tuple[TermRule, ...]:
    """One rule for each of chemical, biological, radiological and nuclear content.

    `min_distinct` distinct terms of one category have to meet in a document before it is dropped.
    """
    return tuple(
        TermRule(f"cbrn-{category}", description, terms, min_distinct)
        for category, (description, terms) in CBRN_TERMS.items()
    )


def load_rule(dotted: str) -> Rule:
    """The rule at `module:name`: an object with `name`, `description` and `matches`, or a function
    from a text to an excerpt or None. Modules in the current folder are found too.

    Raises TrainingError when there is none.
    """
    module_name, _, attribute = dotted.partition(":")
    if not module_name or not attribute:
        raise TrainingError(f"Rule {dotted!r}: expected module:callable, such as my_rules:no_mail.")
    found: Any
    path = list(sys.path)
    sys.path.append("")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever the user's module raises
        raise TrainingError(
            f"Rule {dotted!r} cannot be loaded: {type(error).__name__}: {error}; expected "
            "module:callable of a module that Python can import."
        ) from error
    finally:
        sys.path[:] = path
    if isinstance(found, type):
        raise TrainingError(
            f"Rule {dotted!r} is a class; name an object made from it, or a function."
        )
    if all(hasattr(found, key) for key in ("name", "description", "matches")):
        return found
    if not callable(found):
        raise TrainingError(
            f"Rule {dotted!r} is neither a rule nor a function; expected a callable that takes a "
            "text and returns an excerpt, or None to keep it."
        )
    function: Callable[..., Any] = found
    summary = (function.__doc__ or "").strip().partition("\n")[0]
    return CallableRule(dotted, summary or "A rule of the user's.", function)


# -- Folding --------------------------------------------------------------------------------------


def _fold(text: str) -> str:
    """Lower case, without accents, in compatibility form."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def _term_pattern(term: str) -> str:
    folded = _fold(term)
    words = [re.escape(word) for word in re.findall(r"\w+", folded)]
    return r"[\s\-\u2010-\u2015]+".join(words) + (r"\w*" if words and term.endswith("*") else "")


def _original_span(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """Where a span of the folded text stands in the text itself."""
    if text.isascii():
        return span
    begin = end = at = 0
    for i, character in enumerate(text):
        if at <= span[0]:
            begin = i
        if at >= span[1]:
            break
        at += len(_fold(character))
        end = i + 1
    return begin, end


def _around(text: str, begin: int, end: int) -> str:
    before, after = max(0, begin - _AROUND), min(len(text), end + _AROUND)
    left, right = "…" if before else "", "…" if after < len(text) else ""
    return f"{left}{text[before:after]}{right}"


# -- Filtering ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dropped:
    """One dropped document, as an example for the report."""

    place: str
    excerpt: str
    """On one line, at most `MAX_EXCERPT` characters."""


@dataclass(frozen=True)
class RuleResult:
    """What one rule dropped."""

    name: str
    description: str
    dropped: int
    examples: tuple[Dropped, ...]
    """The first few."""


@dataclass(frozen=True)
class FilterReport:
    """Counts of one run. A document is counted for the first rule that matches it, so the rules'
    counts add up to what was dropped."""

    read: int
    kept: int
    rules: tuple[RuleResult, ...]

    @property
    def dropped(self) -> int:
        return self.read - self.kept

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        rules = [
            {
                "name": rule.name,
                "description": rule.description,
                "dropped": rule.dropped,
                "examples": [{"place": e.place, "excerpt": e.excerpt} for e in rule.examples],
            }
            for rule in self.rules
        ]
        return {"read": self.read, "kept": self.kept, "dropped": self.dropped, "rules": rules}

    def to_markdown(self) -> str:
        """The report for people."""
        share = f" ({self.dropped / self.read:.2%})" if self.read else ""
        lines = [
            "# Data filter",
            "",
            f"{self.read:,} documents read, {self.kept:,} kept, {self.dropped:,} dropped{share}. "
            "A document counts for the first rule that matches it.",
            "",
            "| rule | dropped | drops |",
            "|---|---:|---|",
        ]
        lines += [
            f"| {_cell(rule.name)} | {rule.dropped:,} | {_cell(rule.description)} |"
            for rule in self.rules
        ]
        for rule in self.rules:
            if rule.examples:
                lines += ["", f"## {_cell(rule.name)}", "", "| where | excerpt |", "|---|---|"]
                lines += [f"| {_cell(e.place)} | {_cell(e.excerpt)} |" for e in rule.examples]
        return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    """Text of the data in a Markdown table, as text."""
    return re.sub(r"([\\|`*_<>\[\]&])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    plain = "".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text)
    return " ".join(plain.split())


_T = TypeVar("_T")


class Filtered(Iterator[_T], Generic[_T]):
    """The documents that no rule matches, one at a time; `report` counts those seen so far."""

    def __init__(
        self,
        documents: Iterable[_T],
        rules: Sequence[Rule],
        *,
        text_of: Callable[[_T], str],
        place_of: Callable[[_T, int], str],
        examples: int = 5,
    ) -> None:
        names = [rule.name for rule in rules]
        if len(set(names)) < len(names):
            raise TrainingError(
                f"Two rules are named {max(names, key=names.count)!r}; give each its own name."
            )
        self._documents = iter(documents)
        self._rules = tuple(rules)
        self._text_of, self._place_of = text_of, place_of
        self._max_examples = examples
        self._read = self._kept = 0
        self._dropped = dict.fromkeys(names, 0)
        self._examples: dict[str, list[Dropped]] = {name: [] for name in names}

    def __next__(self) -> _T:
        for document in self._documents:
            self._read += 1
            if self._keeps(document):
                self._kept += 1
                return document
        raise StopIteration

    def _keeps(self, document: _T) -> bool:
        text, place = self._text_of(document), self._place_of(document, self._read)
        for rule in self._rules:
            excerpt = _apply(rule, text, place)
            if excerpt is None:
                continue
            self._dropped[rule.name] += 1
            if len(self._examples[rule.name]) < self._max_examples:
                shown = _one_line(excerpt)
                if len(shown) > MAX_EXCERPT:
                    shown = f"{shown[: MAX_EXCERPT - 1]}…"
                self._examples[rule.name].append(Dropped(place, shown))
            return False
        return True

    @property
    def report(self) -> FilterReport:
        rules = tuple(
            RuleResult(
                rule.name,
                rule.description,
                self._dropped[rule.name],
                tuple(self._examples[rule.name]),
            )
            for rule in self._rules
        )
        return FilterReport(self._read, self._kept, rules)


def _apply(rule: Rule, text: str, place: str) -> str | None:
    try:
        excerpt = rule.matches(text)
    except Exception as error:  # rules are anybody's code
        raise TrainingError(
            f"{place}: rule {rule.name!r} failed with {type(error).__name__}: {error}; mend the "
            "rule, or leave it out."
        ) from error
    if excerpt is not None and not isinstance(excerpt, str):
        raise TrainingError(
            f"{place}: rule {rule.name!r} returned {excerpt!r:.40}; expected an excerpt (a string) "
            "to drop the document, or None to keep it."
        )
    return excerpt


def filter_conversations(
    conversations: Iterable[Conversation], rules: Sequence[Rule], *, examples: int = 5
) -> Filtered[Conversation]:
    """Iterate over the result for the conversations that are kept; then read its `report`.

    Rules see all that anybody says in a conversation, its instructions, and its functions. A rule
    that raises is a TrainingError naming the rule and the conversation, counted from 1.
    """
    return Filtered(
        conversations,
        rules,
        text_of=conversation_text,
        place_of=lambda _, number: f"conversation {number}",
        examples=examples,
    )


def filter_texts(
    texts: Iterable[str], rules: Sequence[Rule], *, examples: int = 5
) -> Filtered[str]:
    """`filter_conversations` for plain documents."""
    return Filtered(
        texts,
        rules,
        text_of=lambda text: text,
        place_of=lambda _, number: f"document {number}",
        examples=examples,
    )


def conversation_text(conversation: Conversation) -> str:
    """What rules see of a conversation: all text, reasoning included, and the functions and
    response formats offered."""
    texts: list[str] = []
    for message in conversation.messages:
        for part in message.content:
            match part:
                case TextContent():
                    texts.append(part.text)
                case SystemContent():
                    texts.append(part.model_identity or "")
                case DeveloperContent():
                    texts.append(part.instructions or "")
                    for tool in (tool for space in part.tools for tool in space.tools):
                        schema = json.dumps(tool.parameters or {}, ensure_ascii=False)
                        texts += [tool.name, tool.description, schema]
                    for shape in part.response_formats:
                        schema = json.dumps(shape.schema, ensure_ascii=False)
                        texts += [shape.name, shape.description, schema]
    return "\n".join(text for text in texts if text)


# -- Files ----------------------------------------------------------------------------------------


def run_filter(
    paths: Sequence[str | Path],
    out_folder: str | Path,
    rules: Sequence[Rule],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    examples: int = 5,
) -> FilterReport:
    """Filter JSON Lines files: kept lines, word for word, into `out_folder`/kept.jsonl, the report
    beside them as filter.json and filter.md.

    A line is a conversation as `dataset.read_conversations` takes it, or a document
    `{"text": "…"}`. `progress(done, total)` is told bytes. All three files appear at the end and
    replace earlier ones; on any error none of them changes. Raises TrainingError.
    """
    if not paths:
        raise TrainingError("There is nothing to filter; name at least one file of JSON Lines.")
    sources = [Path(path) for path in paths]
    folder = Path(out_folder)
    outputs = [folder / name for name in ("kept.jsonl", "filter.json", "filter.md")]
    for source in sources:
        if source.resolve() == outputs[0].resolve():
            raise TrainingError(f"{source} would be overwritten; name another output folder.")
    filtered = Filtered(
        _lines(sources, progress),
        rules,
        text_of=_line_text,
        place_of=lambda line, _: line.place,
        examples=examples,
    )
    with replacing(*outputs) as (kept, as_json, as_markdown):
        with kept.open("w", encoding="utf-8", newline="\n") as stream:
            for line in filtered:
                stream.write(f"{line.text}\n")
        report = filtered.report
        values = {"files": [str(source) for source in sources]} | report.to_json()
        as_json.write_text(json.dumps(values, indent=1) + "\n")
        as_markdown.write_text(report.to_markdown(), encoding="utf-8", errors="backslashreplace")
    return report


def _lines(sources: Sequence[Path], progress: Callable[[int, int], None]) -> Iterator[Line]:
    total = sum(source.stat().st_size for source in sources if source.is_file())
    done = 0
    for source in sources:
        for line in read_lines(source):
            yield line
            done += len(line.text.encode()) + 1
            progress(min(done, total), total)
    progress(total, total)


def _line_text(line: Line) -> str:
    document = read_object(line)
    if "text" not in document or "messages" in document:
        return conversation_text(conversation_of(line, document))
    if set(document) != {"text"} or not isinstance(document["text"], str):
        raise TrainingError(
            f"{line.place}: expected a document with the one key `text`, a string; got the keys "
            f"{', '.join(sorted(document))}; take the others out."
        )
    return document["text"]

"""Templates into what people say: alternatives, words for slots, politeness, and the carelessness
with which people type.

A template such as `[who|what] are you, {model}?` stands for the product of its alternatives; an
answer is learnt from thousands of ways to ask for it, of which no two need be alike.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from ossia.evals.held_out import held_out_name
from ossia.evals.words import ADJECTIVES, NOUNS, SMALL, VERBS


def lines(text: str) -> tuple[str, ...]:
    """Templates, one a line; a long one is broken before or after a `|`, and goes on indented."""
    return tuple(re.sub(r"(?<=\|)\n  |\n  (?=\|)", "", text).strip().split("\n"))


def _bars(text: str) -> tuple[str, ...]:
    return tuple(option.strip() for option in " ".join(text.split()).split("|"))


SLOTS: dict[str, tuple[str, ...]] = {
    "noun": tuple(noun for noun in NOUNS if not held_out_name(noun)),
    "verb": VERBS,
    "adjective": ADJECTIVES,
    "small": SMALL,
    "model": _bars("""
        ChatGPT|GPT|GPT-2|GPT-3|GPT-4|GPT-4o|GPT-5|gpt-oss|gpt-oss-20b|gpt-oss-120b|Claude|Gemini|
        Gemma|Llama|Llama 3|Mistral|Mixtral|Qwen|DeepSeek|Grok|Copilot|Bard|Phi|Falcon|Bloom|Kimi|
        Nemotron|Command R|OLMo|GLM|Yi|Vicuna|Alpaca|Pythia|BERT|T5|o1|o3|Sonnet|Opus|Haiku|Watson|
        a GPT model|a Llama model|an OpenAI model|a large language model|a Chinese model
    """),
    "assistant": _bars("""
        Siri|Alexa|Cortana|Bixby|Clippy|HAL|Jarvis|ELIZA|Replika|Max|Bob|Sam|Eva|Robbie|Data|Skynet|
        Google Assistant|Character AI|Perplexity|Pi|Poe|Le Chat|a parrot|a search engine|a bot
    """),
    "company": _bars("""
        OpenAI|Google|Meta|Microsoft|Anthropic|Apple|Amazon|Mistral AI|xAI|Alibaba|Baidu|DeepMind|
        DeepSeek|Nvidia|IBM|Hugging Face|Cohere|Tencent|Samsung|Intel|Facebook|Stability|Moonshot|
        Zhipu|Databricks|Salesforce|Adobe|Oracle|AMD|Sony|a start-up|a university|a big company
    """),
    "city": _bars("""
        Paris|London|Rome|Madrid|Lisbon|Vienna|Prague|Warsaw|Oslo|Helsinki|Athens|Cairo|Lagos|
        Tokyo|Seoul|Beijing|Delhi|Mumbai|Sydney|Toronto|Chicago|Boston|New York|Mexico City|Lima|
        Bogota|Rio|Istanbul|Moscow|Kyiv|Dublin|Munich|Hamburg|Zurich|Geneva|Milan|Texas|Ohio|Mars
    """),
    "country": _bars("""
        France|Italy|Spain|Portugal|Germany|Poland|Sweden|Norway|Finland|Greece|Turkey|Egypt|Kenya|
        Nigeria|Ghana|India|China|Korea|Vietnam|Thailand|Australia|Canada|Mexico|Brazil|Chile|Peru|
        Argentina|Cuba|Iran|Iraq|Israel|Russia|Ukraine|Ireland|Scotland|Iceland|the Netherlands
    """),
    "language": _bars("""
        French|German|Spanish|Italian|Portuguese|Dutch|Polish|Russian|Turkish|Arabic|Hindi|Chinese|
        Korean|Latin|Greek|Swedish|Finnish|Czech|Hebrew|Swahili|Vietnamese|Thai|Esperanto|English
    """),
    "code": _bars("""
        Python|C|C++|Rust|Java|JavaScript|TypeScript|Go|Ruby|PHP|Haskell|Kotlin|Swift|SQL|Bash|R|
        Perl|Lua|HTML|CSS|Scala|Fortran|COBOL|assembly|MATLAB|Excel|regex|LaTeX
    """),
    "thing": _bars("""
        a list|a string|a file|a linked list|a binary tree|a web server|a to-do app|a chess game|a
        calculator|the Fibonacci numbers|quicksort|bubble sort|a date|an array|a matrix|a class|a
        loop|a hash map|a login page|a snake game|prime numbers|a CSV file|a stack|a queue|an API
    """),
    "person": _bars("""
        Einstein|Newton|Mozart|Bach|Beethoven|Shakespeare|Goethe|Napoleon|Cleopatra|Caesar|Plato|
        Aristotle|Darwin|Marie Curie|Ada Lovelace|Alan Turing|Picasso|Frida Kahlo|Gandhi|Mandela|
        Lincoln|Obama|Merkel|Taylor Swift|Elvis|Beyonce|Messi|Pele|Serena Williams|Galileo|Kant|
        Homer|Dante|Tolstoy|Austen|Kafka|Harry Potter|Sherlock Holmes|Batman|my uncle|my cat
    """),
    "friend": _bars("""
        my friend|my mum|my dad|my sister|my neighbour|my son|my daughter|my boss|a colleague|
        my aunt|my grandma|my cousin|my husband|my wife|my flatmate|my coach|the team|a child
    """),
    "food": _bars("""
        pancakes|lasagne|bread|pizza|soup|a cake|sushi|curry|goulash|paella|tacos|rice|dumplings|
        cheese|an omelette|risotto|muffins|a salad|kimchi|falafel|porridge|apple pie|ice cream|tea
    """),
    "animal": _bars("""
        cats|dogs|goats|bees|whales|penguins|spiders|horses|owls|snakes|ants|dolphins|elephants|
        tigers|pandas|bats|sharks|octopuses|wolves|foxes|hedgehogs|dinosaurs|dragons|unicorns|cows
    """),
    "subject": _bars("""
        gravity|photosynthesis|inflation|democracy|evolution|black holes|quantum physics|
        the big bang|atoms|DNA|vaccines|magnets|rainbows|volcanoes|tides|the Roman Empire|
        the French Revolution|the Cold War|climate change|blockchain|the stock market|
        grammar|jazz|opera|yoga|chess|football|cricket|philosophy|astrology|machine learning|
        neural networks|the internet|taxes|
        insurance|dreams|happiness|love|friendship|time travel|the Olympics|the pyramids|physics
    """),
    "piece": _bars("""
        a poem|a haiku|a limerick|a song|an essay|a letter|an email|a speech|a tale|a fairy tale|a
        novel|a blog post|a tweet|a joke|a riddle|a toast|a diary entry|a play|a scene|a dialogue|a
        review|a recipe|a summary|a CV|a cover letter|a slogan|a headline|a caption|a prayer|a rap|a
        birthday card|an invitation|an advert|a report|an article|a love letter|a bedtime tale
    """),
}  # fmt: skip
"""Words for `{slot}`s; a word that is held out of training is in none."""

_PIECE = re.compile(r"\[|\]|\||\{\w+\}|[^\[\]|{}]+")
_WORD = re.compile(r"[^\W\d_]+")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")


@dataclass(frozen=True)
class _Slot:
    name: str


_Sequence = tuple["str | _Slot | _Alternatives", ...]


@dataclass(frozen=True)
class _Alternatives:
    options: tuple[_Sequence, ...]


def expand(rng: random.Random, template: str, **words: str) -> str:
    """One of the texts that the template stands for: `[a|b]` is one of its alternatives, nested if
    need be, and `{slot}` is `words["slot"]` or else a word of `SLOTS`."""
    return _ARTICLE.sub(r"\1n ", "".join(_drawn(rng, _parsed(template), words)))


def _drawn(rng: random.Random, sequence: _Sequence, words: dict[str, str]) -> Iterator[str]:
    for part in sequence:
        match part:
            case str():
                yield part
            case _Slot(name):
                yield words[name] if name in words else rng.choice(SLOTS[name])
            case _Alternatives(options):
                yield from _drawn(rng, rng.choice(options), words)


@functools.cache
def _parsed(template: str) -> _Sequence:
    pieces = iter(_PIECE.findall(template))

    def sequences() -> Iterator[_Sequence]:
        """Up to the bracket that closes, or the end."""
        parts: list[str | _Slot | _Alternatives] = []
        for piece in pieces:
            if piece == "[":
                parts.append(_Alternatives(tuple(sequences())))
            elif piece == "]":
                break
            elif piece == "|":
                yield tuple(parts)
                parts = []
            else:
                parts.append(_Slot(piece[1:-1]) if piece[0] == "{" else piece)
        yield tuple(parts)

    (sequence,) = sequences()
    return sequence


_OPENINGS = lines("""
Please,
Hi,
Hello!
Hey,
Hi nano,
nano,
[Good morning|Good day|Good evening|Hi there|Hey there|Hello again][.|!|,]
Excuse me,
[Quick|Short|Small|Stupid|Next|Another|One more|Simple] question:
[A|My] question:
I have a question[.|:| for you.]
[So|Ok|Okay|And|Well|Now|Sorry|Hmm|Um|Alright|Right|Oh|Listen|Look|Yes|No|Great|Fine|Thanks],
[Be honest|Tell me|Answer this|Try this|Another one|Something else|Just curious|Seriously|
  Let's see]:
By the way,
[I am new here|I am bored|I am curious|I need help|I am back|We just met|This is urgent].
[My friend|My boss|A colleague|Someone] asks:
""")  # fmt: skip

_CLOSINGS = lines("""
, please
[ please]
, thanks
, thank you
, nano
, [little|dear|tiny] [model|friend|machine|one]
[ now| today| quickly| briefly| right now| by any chance| if you can| if I may ask]
, [my friend|buddy|mate|dear|pal|sir|madam]
""")


def asked(rng: random.Random, text: str, *, keep: Collection[str] = ()) -> str:
    """A question or a request as people type it: one time in four with something before it, one in
    eight with something after it, and then as `typed` has it."""
    draw = rng.random()
    if draw < 0.12 and text[-1] in ".?!":
        text = f"{text[:-1]}{expand(rng, rng.choice(_CLOSINGS))}{text[-1]}"
    if draw > 0.75:
        opening = expand(rng, rng.choice(_OPENINGS))
        if opening.endswith(",") and not re.match(r"I\b|[A-Z]{2}", text):
            text = text[0].lower() + text[1:]
        text = f"{opening} {text}"
    return typed(rng, text, keep=keep)


def typed(rng: random.Random, text: str, *, keep: Collection[str] = ()) -> str:
    """As people type: a third in lower case, some in capitals, marks left out or doubled, and here
    and there a slip. The words of `keep` stay as they are."""

    def each_word(change: Callable[[str], str]) -> str:
        return _WORD.sub(lambda m: m[0] if m[0] in keep else change(m[0]), text)

    draw = rng.random()
    if draw < 0.3:
        text = each_word(str.lower)
    elif draw < 0.33:
        text = each_word(str.upper)
    draw = rng.random()
    if text[-1] in ".?!":
        if draw < 0.28:
            text = text[:-1]
        elif draw < 0.34:
            text = text[:-1] + rng.choice(("??", "!", "!!", "...", " ?", ".", "?", " !", " :)"))
    if rng.random() < 0.12:
        text = _slipped(rng, text, keep)
    return text


def _slipped(rng: random.Random, text: str, keep: Collection[str]) -> str:
    """One word of four letters or more mistyped: two letters swapped, one lost, one doubled."""
    words = [m for m in _WORD.finditer(text) if len(m[0]) > 3 and m[0] not in keep]
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 1)
    a, b = text[at], text[at + 1]
    return text[:at] + rng.choice((b + a, b, a + a + b)) + text[at + 2 :]

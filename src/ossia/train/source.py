"""What a stage reads: the recipe's mix of generated texts and the user's files, filtered, as one
stream per step."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from ossia.errors import TrainingError
from ossia.harmony.render import TrainingExample
from ossia.harmony.tokenizer import Tokenizer
from ossia.train.curriculum.documents import Document
from ossia.train.curriculum.lesson import Lesson
from ossia.train.curriculum.lessons import stream
from ossia.train.curriculum.repeats import FEW_SHARE, SMALLEST, alphabet_size, draw_repeat
from ossia.train.data import Batch, begin_of, encode, pack
from ossia.train.dataset import load_examples
from ossia.train.files import replacing
from ossia.train.filter import (
    DuplicateRule,
    Filtered,
    FilterReport,
    Rule,
    cbrn_rules,
    conversation_text,
    load_rule,
)
from ossia.train.recipe import Recipe, Stage


class Source:
    """The batches of one stage; those of a step are a function of the recipe and the step alone."""

    def __init__(self, recipe: Recipe, stage: Stage, tokenizer: Tokenizer) -> None:
        """Reads the stage's files whole. Raises TrainingError, with file and line, for what is
        wrong in them."""
        self._recipe, self._stage, self._tokenizer = recipe, stage, tokenizer
        self._part = recipe.stage(stage)
        self._context = recipe.architecture.max_position_embeddings
        self._rules = rules_named(recipe.filters)
        self._examples = [
            example
            for file in self._part.files
            for example in load_examples(file, tokenizer, max_tokens=self._context)
        ]

    def batches_at(self, step: int) -> Sequence[Batch]:
        """One batch for each shard."""
        rng = random.Random(f"{self._recipe.seed}:{self._stage}:{step}")
        examples = self._repeats(rng, step) if step < self._part.repeat_steps else self._stream(rng)
        return pack(examples, self._part.batch_tokens, shards=self._recipe.shards)

    def _repeats(self, rng: random.Random, step: int) -> Iterator[TrainingExample]:
        begin = begin_of(self._tokenizer)
        # Control tokens stand at the end of the vocabulary, and are not among the repeated ones.
        ordinary = min(begin, *self._tokenizer.control.stop_ids)
        while True:
            size = alphabet_size(step, self._part.repeat_steps, ordinary)
            few = size > SMALLEST and rng.random() < FEW_SHARE
            yield draw_repeat(rng, begin, range(ordinary - size, ordinary), few=few)

    def _stream(self, rng: random.Random) -> Iterator[TrainingExample]:
        generated = filtered(
            stream(rng, self._part.mix, full_system=self._part.full_system), self._rules
        )
        while True:
            if self._examples and rng.random() < self._part.files_share:
                yield rng.choice(self._examples)
                continue
            example = encode(self._tokenizer, next(generated))
            if len(example.token_ids) > self._context:
                raise TrainingError(
                    f"A text of the curriculum has {len(example.token_ids)} tokens, more than the "
                    f"context of {self._context}; raise architecture.max_position_embeddings."
                )
            yield example


def rules_named(names: Sequence[str]) -> list[Rule]:
    """The filter's rules: `cbrn`, `duplicates`, or `module:callable` of the user's own. Raises
    TrainingError for another."""
    rules: list[Rule] = []
    for name in names:
        match name:
            case "cbrn":
                rules += cbrn_rules()
            case "duplicates":
                rules.append(DuplicateRule())
            case _:
                rules.append(load_rule(name))
    return rules


def filtered(
    items: Iterator[Document | Lesson], rules: Sequence[Rule]
) -> Filtered[Document | Lesson]:
    return Filtered(items, rules, text_of=text_of, place_of=lambda _, number: f"text {number}")


def text_of(item: Document | Lesson) -> str:
    """All that is said in it."""
    return item.text if isinstance(item, Document) else conversation_text(item.conversation)


def write_sample(recipe: Recipe, folder: Path) -> FilterReport:
    """Texts of every stage's mix through the filter: what is kept as `folder`/STAGE.jsonl
    (conversations in Harmony's JSON form, documents as `{"text": …}`), the report as filter.json
    and filter.md. Raises TrainingError when the disk does not take them."""

    def drawn() -> Iterator[tuple[Stage, Document | Lesson]]:
        for stage in Stage:
            part, rng = recipe.stage(stage), random.Random(f"{recipe.seed}:{stage}:sample")
            texts = stream(rng, part.mix, full_system=part.full_system)
            for item in islice(texts, recipe.sample_texts):
                yield stage, item

    kept = Filtered(
        drawn(),
        rules_named(recipe.filters),
        text_of=lambda pair: text_of(pair[1]),
        place_of=lambda pair, number: f"{pair[0]}, text {number}",
    )
    names = [*(f"{stage}.jsonl" for stage in Stage), "filter.json", "filter.md"]
    with replacing(*(folder / name for name in names)) as (*samples, as_json, as_markdown):
        with ExitStack() as stack:
            streams = {
                stage: stack.enter_context(path.open("w", encoding="utf-8"))
                for stage, path in zip(Stage, samples, strict=True)
            }
            for stage, item in kept:
                streams[stage].write(json.dumps(_as_json(item), ensure_ascii=False) + "\n")
        as_json.write_text(json.dumps(kept.report.to_json(), indent=1) + "\n")
        as_markdown.write_text(kept.report.to_markdown(), "utf-8")
    return kept.report


def _as_json(item: Document | Lesson) -> object:
    return {"text": item.text} if isinstance(item, Document) else item.conversation.to_dict()

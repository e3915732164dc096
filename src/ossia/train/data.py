"""Documents and conversations into batches: rendered, tokenised, and packed side by side with
`cu_seqlens`, so that attention never crosses documents.

A batch is a pure function of its random generator, so that resuming needs no more than the number
of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ossia.errors import TokenizerError
from ossia.harmony.render import TrainingExample, render_for_training
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.inputs import ForwardInput, packed_input
from ossia.train.curriculum.documents import Document
from ossia.train.curriculum.lesson import Lesson


@dataclass(frozen=True)
class Batch:
    """One step's documents. Row r of the logits predicts `targets_R[r]`."""

    inputs: ForwardInput
    targets_R: np.ndarray
    """int64, one per logit row: the token that follows."""
    weights_R: np.ndarray
    """float32, above 0: the weight of each row's loss."""


def encode(tokenizer: Tokenizer, item: Document | Lesson) -> TrainingExample:
    """The tokens of a document or lesson, and the weight of each one's loss.

    A document stands between `<|startoftext|>` and `<|endoftext|>`; it is encoded span by span.
    """
    if isinstance(item, Lesson):
        return render_for_training(tokenizer, item.conversation)
    ids, weights = [begin_of(tokenizer)], [0]
    for text, weight in item.spans:
        encoded = tokenizer.encode(text)
        ids += encoded
        weights += [weight] * len(encoded)
    return TrainingExample((*ids, tokenizer.control.endoftext), (*weights, 1))


def begin_of(tokenizer: Tokenizer) -> int:
    """`<|startoftext|>`, with which a document begins. Raises TokenizerError when the vocabulary
    has none."""
    begin = tokenizer.control.startoftext
    if begin is None:
        raise TokenizerError(
            f"{tokenizer.name} has no <|startoftext|>, with which a document begins; use a "
            "vocabulary made by `ossia train tokenizer`."
        )
    return begin


def pack(examples: Iterable[TrainingExample], tokens: int, *, shards: int = 1) -> list[Batch]:
    """As many examples as bring the shards to `tokens` together, the last one whole; dealt out so
    that the shards, which wait for one another, take about as long."""
    taken: list[TrainingExample] = []
    size = 0
    for example in examples:
        taken.append(example)
        size += len(example.token_ids) - 1
        if size >= tokens and len(taken) >= shards:
            break
    dealt: list[list[TrainingExample]] = [[] for _ in range(shards)]
    costs = [0.0] * shards
    for example in sorted(taken, key=_cost, reverse=True):
        least = costs.index(min(costs))
        dealt[least].append(example)
        costs[least] += _cost(example)
    return [_batch(shard) for shard in dealt]


ATTENTION_COST = 1 / 1000
"""What a token's look at one before it costs, in units of all else that the token costs: at nano's
sizes 6 layers · 4 heads · 64 · 4 operations, of 4 million."""


def _cost(example: TrainingExample) -> float:
    length = len(example.token_ids)
    return length * (1 + length * ATTENTION_COST)


def _batch(examples: Sequence[TrainingExample]) -> Batch:
    inputs = packed_input([example.token_ids[:-1] for example in examples])
    targets_T = np.concatenate([np.array(example.token_ids[1:]) for example in examples])
    weights_T = np.concatenate([np.array(e.loss_weights[1:], np.float32) for e in examples])
    rows = np.flatnonzero(weights_T)
    return Batch(
        inputs=replace(inputs, logit_rows=rows.astype(np.int32)),
        targets_R=targets_T[rows],
        weights_R=weights_T[rows],
    )

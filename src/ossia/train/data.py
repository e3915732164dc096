"""Documents and conversations into batches: rendered, tokenised, and packed side by side with
`cu_seqlens`, so that attention never crosses documents.

A batch is a pure function of its random generator, so that resuming needs no more than the number
of the step.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def pack(examples: Iterable[TrainingExample], tokens: int) -> Batch:
    """As many examples as bring the batch to `tokens`; the last one is taken whole."""
    taken: list[TrainingExample] = []
    size = 0
    for example in examples:
        taken.append(example)
        size += len(example.token_ids) - 1
        if size >= tokens:
            break
    inputs = packed_input([example.token_ids[:-1] for example in taken])
    targets_T = np.concatenate([np.array(example.token_ids[1:]) for example in taken])
    weights_T = np.concatenate([np.array(e.loss_weights[1:], np.float32) for e in taken])
    rows = np.flatnonzero(weights_T)
    return Batch(
        inputs=replace(inputs, logit_rows=rows.astype(np.int32)),
        targets_R=targets_T[rows],
        weights_R=weights_T[rows],
    )

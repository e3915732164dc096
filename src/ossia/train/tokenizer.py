"""A small byte-level BPE in the manner of o200k_harmony: text in, a `tokenizer.json` out.

The 256 bytes come first, merges follow in the order in which they were learnt (id = rank), and
sixteen control tokens close the vocabulary in the order that o200k_harmony gives them. Digits stand
alone, so that arithmetic sees every one of them, and so do words and quotes, so that names can be
copied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ossia.errors import MissingDependencyError, TokenizerError
from ossia.harmony.builtin_tools import PYTHON
from ossia.harmony.messages import SystemContent
from ossia.train.curriculum.lesson import IDENTITY

try:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
except ImportError as error:
    raise MissingDependencyError(
        "Training a tokenizer needs the package tokenizers; install it with "
        "`pip install 'ossia[train]'`."
    ) from error

_SYSTEM = SystemContent()

FIXED_PASSAGES = (
    IDENTITY.removesuffix("."),
    str(_SYSTEM.model_identity).removesuffix("."),
    f"Knowledge cutoff: {_SYSTEM.knowledge_cutoff}\nCurrent date: ",
    "Reasoning: ",
    f"# Valid channels: {', '.join(_SYSTEM.valid_channels or ())}. "
    "Channel must be included for every message.",
    "Calls to these tools must go to the commentary channel: 'functions'.",
    "# Instructions\n\n",
    "# Tools\n\n",
    f"## python\n\n{PYTHON.description}",
    "## functions\n\nnamespace functions {\n\n",
    " = (_: {\n",
    "}) => any;\n\n",
    "} // namespace functions",
    "// ",
    " to=functions.",
    " to=python",
    " to=assistant",
)
"""What Harmony writes into nearly every prompt, word for word. Each stands alone, so that merges
make a few tokens of it where words would be seventy: a third of what training reads, and half of
what a sliding layer sees of a lesson. Where the words differ, they are read one by one as ever."""

PATTERN = "|".join(
    (
        *map(re.escape, FIXED_PASSAGES),
        r" [-+−–×*·=→]+ ",
        r" (?:a|am|and|are|as|be|by|do|for|in|is|it|me|of|that|the|to|what|with|you)"
        r"(?![\p{L}\p{M}_])",
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r"\p{N}",
        r' ?"',
        r' ?[^\s\p{L}\p{N}"]+[\r\n/]*',
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""The pre-tokenizer of o200k_base with changes: the passages above and a sign between spaces are
pieces, a digit and a double quote stand alone, and a word does not take the character before it
along, unless it is one of the small words that nobody gives as a name. A name is then the same
tokens after a space, a quote or an underscore, so that a small model copies it token by token, and
in JSON it need not know what follows a string to end it."""

CONTROLS = (
    "<|startoftext|>", "<|endoftext|>", None, None, "<|return|>", "<|constrain|>", None,
    "<|channel|>", "<|start|>", "<|end|>", "<|message|>", None, None, None, "<|call|>", None,
)  # fmt: skip
"""The end of the vocabulary; None is `<|reserved_ID|>`."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges from `texts`, none of which may hold control tokens, until `vocab_size` ids are
    in use, controls included.

    Raises TokenizerError when the texts hold too few distinct pieces for that many merges.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ordinary = vocab_size - len(CONTROLS)
    if ordinary < len(alphabet):
        raise TokenizerError(
            f"A byte-level vocabulary needs {len(alphabet) + len(CONTROLS)} ids for the bytes and "
            f"the control tokens alone; got vocab_size={vocab_size}."
        )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=ordinary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if (learnt := tokenizer.get_vocab_size()) != ordinary:
        raise TokenizerError(
            f"The texts give a vocabulary of {learnt} tokens where {ordinary} were asked for; "
            "bring more varied texts or ask for fewer."
        )
    tokenizer.add_special_tokens(
        [
            AddedToken(spelling or f"<|reserved_{ordinary + i}|>", special=True, normalized=False)
            for i, spelling in enumerate(CONTROLS)
        ]
    )
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """One without merges: what rendering needs before there is a trained one."""
    return train_tokenizer((), len(pre_tokenizers.ByteLevel.alphabet()) + len(CONTROLS))


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|return|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

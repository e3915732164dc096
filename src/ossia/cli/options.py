"""Options that several commands share, stated once, and what becomes of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from ossia.engine.config import EngineConfig
    from ossia.engine.request import SamplingParams
    from ossia.llm import LLM
    from ossia.loading import KernelSettings, OpenedModel

Progress = Callable[[int, int], None]
_T = TypeVar("_T")

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="`nano` (built in), a hub name such as openai/gpt-oss-20b, or a checkpoint's folder.",
    ),
]
KernelsOption = Annotated[
    str, typer.Option("--kernels", help="Kernel set: auto, native, reference or torch.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", help="Of the native kernels. Default: all cores this process may use."
    ),
]
ExactOption = Annotated[
    bool,
    typer.Option(
        "--exact", help="Native kernels without quantised activations and dense tensors: slower."
    ),
]
DenseDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dense-dtype",
        metavar="int8|bf16",
        help="How the native kernels keep what is not an expert: int8 (default), or as stored.",
    ),
]
InstructionSetOption = Annotated[
    str | None,
    typer.Option(
        "--instruction-set",
        metavar="auto|avx512|avx2|scalar",
        help="Of the native kernels: another than the processor's best. The results are the same.",
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="TOKENS",
        min=2,
        help="Of prompt and answer together. Default: the model's, or what memory allows.",
    ),
]
MemoryOption = Annotated[
    bool,
    typer.Option("--memory", help="Print how much memory it will take, line by line, and stop."),
]
ExpertMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--expert-memory",
        metavar="SIZE|auto",
        help="For a model larger than memory: keep at most so much of its experts there, such as "
        "6GB, or what is left (auto), and read the others from disk as they are needed, slowly.",
    ),
]
AllowSlowOption = Annotated[
    bool,
    typer.Option("--allow-slow", help="Run a large model on the reference kernels all the same."),
]
NoMmapOption = Annotated[
    bool,
    typer.Option("--no-mmap", help="Read the checkpoint into memory instead of mapping its files."),
]
VocabOption = Annotated[
    Path | None,
    typer.Option(
        "--vocab",
        metavar="FOLDER|FILE",
        help="A vocabulary to use in place of the one beside the weights: a model's folder, its "
        "tokenizer.json, or a file of o200k ranks.",
    ),
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Most tokens to generate.")
]
TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", help="0 is greedy. Default: the model's generation_config."),
]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", help="Keep the smallest set of this probability.")
]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="Keep the k best; 0 is off.")]
MinPOption = Annotated[
    float | None,
    typer.Option("--min-p", help="Drop what is less likely than this share of the best."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Makes sampling repeatable.")]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", help="Stop before this text; may be repeated.")
]


@dataclass(frozen=True)
class ModelOptions:
    """A model and how it is to run: the options that every command which runs one has."""

    model: str = "nano"
    kernels: str = "auto"
    threads: int | None = None
    exact: bool = False
    dense_dtype: str | None = None
    instruction_set: str | None = None
    context: int | None = None
    vocab: Path | None = None
    allow_slow: bool = False
    expert_memory: str | None = None
    no_mmap: bool = False

    @property
    def settings(self) -> KernelSettings:
        from ossia.loading import KernelSettings

        return KernelSettings(
            self.kernels, self.threads, self.exact, self.dense_dtype, self.instruction_set
        )

    def open(
        self, *, engine: EngineConfig | None = None, needs_tokenizer: bool = True
    ) -> OpenedModel:
        """Everything but the weights. `engine`: default is one for a single sequence at a time."""
        from ossia.engine.config import EngineConfig
        from ossia.loading import open_model

        return open_model(
            self.model,
            self.settings,
            engine=engine or EngineConfig(max_num_seqs=1, max_model_len=self.context),
            tokenizer=self.vocab,
            needs_tokenizer=needs_tokenizer,
            use_mmap=not self.no_mmap,
            allow_slow=self.allow_slow,
            expert_memory=self.expert_memory,
        )


def load_model(opened: OpenedModel, *, quiet: bool = False) -> LLM:
    """`ossia.load`, what memory does not allow on stderr, and a progress bar there where loading
    takes long enough to notice.
    """
    from ossia.llm import load_opened

    for note in memory_notes(opened):
        print(f"note: {note}", file=sys.stderr)
    return with_progress(f"loading {opened.name}", lambda p: load_opened(opened, progress=p), quiet)


def with_progress(what: str, run: Callable[[Progress | None], _T], quiet: bool = False) -> _T:
    """Calls `run` with a callback (done, total) that moves a bar on stderr; None where that is no
    terminal.
    """
    if quiet or not sys.stderr.isatty():
        return run(None)

    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        return run(lambda done, total: bar.update(task, completed=done, total=total))


def memory_notes(opened: OpenedModel) -> Iterator[str]:
    """What about memory will surprise, though the model runs."""
    plan, machine = opened.memory, opened.machine
    if opened.shortened and not opened.refusal:
        yield (
            f"the context is {plan.context:,} tokens, for more do not fit into the "
            f"{size(machine.usable)} of memory."
        )
    elif machine.available is not None and plan.total > machine.available and not opened.refusal:
        yield (
            f"this model will take up to {size(plan.total)} of memory, of which "
            f"{size(machine.available)} are free now: close other programs, or expect it to be "
            "slow."
        )


def size(num_bytes: int | None) -> str:
    """In decimal units, as disks and the hub have them."""
    if num_bytes is None:
        return "an unknown amount"
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def sampling_of(
    llm: LLM,
    *,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    seed: int | None,
) -> SamplingParams:
    """The model's own sampling defaults with what the user named in their place."""
    named = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "seed": seed,
    }
    return replace(
        llm.default_sampling, **{name: value for name, value in named.items() if value is not None}
    )

"""Options that several commands share, stated once, and what becomes of them."""

from __future__ import annotations

import functools
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ossia.engine.request import SamplingParams
    from ossia.kernels.interface import Kernels
    from ossia.llm import LLM

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
        "--threads", min=1, help="Of the native kernels. Default: all cores this process may use."
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
class KernelOptions:
    """The kernel set asked for and its settings, under the names that `ossia.load` gives them."""

    kernels: str = "auto"
    threads: int | None = None
    exact: bool = False
    dense_dtype: str | None = None
    instruction_set: str | None = None

    def choose(self, *, model_bytes: int = 0) -> tuple[Kernels, str]:
        """The kernels, and why those."""
        from ossia.kernels.choose import choose_kernels

        settings = asdict(self)
        return choose_kernels(settings.pop("kernels"), model_bytes=model_bytes, **settings)

    def exact_twin(self, name: str) -> Kernels:
        """The set called `name` with these settings, in full precision."""
        precise = replace(self, kernels=name, exact=name == "native", dense_dtype=None)
        return precise.choose()[0]


def load_model(
    model: str,
    kernels: KernelOptions,
    *,
    vocab: Path | None,
    allow_slow: bool,
    no_mmap: bool,
    quiet: bool = False,
) -> LLM:
    """`ossia.load` with a progress bar on stderr where loading takes long enough to notice."""
    import ossia

    load = functools.partial(
        ossia.load,
        model,
        **asdict(kernels),
        tokenizer=vocab,
        allow_slow=allow_slow,
        use_mmap=not no_mmap,
    )
    if quiet or not sys.stderr.isatty():
        return load()

    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"loading {model}", total=None)
        return load(progress=lambda done, total: bar.update(task, completed=done, total=total))


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

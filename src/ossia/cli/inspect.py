"""`ossia inspect`: what a checkpoint or a .safetensors file holds, what it needs to run, and
everything that is wrong with it. Only configuration and headers are read, never the tensors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ossia.model.checkpoint import Survey
    from ossia.model.safetensors import Header

_LAYER = re.compile(r"\b(?:layers|block)\.(\d+)\.")


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help="`nano`, a hub name, a checkpoint's folder, or one .safetensors file.",
        ),
    ] = "nano",
    context: Annotated[
        int | None,
        typer.Option(
            "--context", min=1, help="Tokens of the KV cache to reckon with; default: all it takes."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, all tensors.")] = False,
) -> None:
    """Show what a checkpoint holds, what it needs to run, and what is wrong with it.

    Exit code 1 when anything is wrong.
    """
    from ossia.model.checkpoint import survey
    from ossia.model.hub import resolve_model
    from ossia.model.safetensors import read_header

    path = resolve_model(model)
    if path.is_file():
        report = describe_file(read_header(path))
    else:
        report = describe(survey(path), context)
    if as_json:
        print(json.dumps(report))
    else:
        _show(report)
    if report["problems"]:
        raise typer.Exit(1)


def describe_file(header: Header) -> dict[str, Any]:
    """The report on a single file, as `--json` prints it."""
    return {
        "path": str(header.path),
        "metadata": dict(header.metadata),
        "tensors": _tensors([header]),
        "problems": list(header.problems),
    }


def describe(found: Survey, context: int | None) -> dict[str, Any]:
    """The report on a checkpoint, as `--json` prints it. Sizes are in bytes."""
    report: dict[str, Any] = {
        "path": str(found.folder),
        "layout": found.layout.value if found.layout is not None else None,
        "config": dataclasses.asdict(found.config) if found.config is not None else None,
        "generation": dataclasses.asdict(found.generation) if found.generation else None,
        "unrecognised_keys": list(found.unrecognised),
        "files": [
            {"name": header.path.name, "bytes": header.file_size, "tensors": len(header.tensors)}
            for header in found.headers
        ],
        "tensors": _tensors(found.headers),
        "problems": [str(problem) for problem in found.problems],
    }
    config = found.config
    if config is not None:
        report["parameters"] = {
            "total": config.num_parameters(),
            "active_per_token": config.num_active_parameters(),
        }
        report["memory"] = _memory(found, context or config.max_position_embeddings)
    return report


def _tensors(headers: Iterable[Header]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dtype": info.dtype,
            "shape": list(info.shape),
            "bytes": info.nbytes,
            "file": header.path.name,
        }
        for header in headers
        for name, info in header.tensors.items()
    ]


def _memory(found: Survey, context: int) -> dict[str, Any]:
    """Bytes in memory by what they are for, with the tensors that are not MXFP4, and the KV cache,
    in bfloat16 or in float32. MXFP4 experts are used in place, so they count as stored.
    """
    from ossia.kernels.interface import part_shapes
    from ossia.model.names import NAMES, Form, parts

    assert found.config is not None and found.layout is not None
    memory: dict[str, Any] = {"context": context}
    for name, itemsize in (("bfloat16", 2), ("float32", 4)):
        sizes: dict[str, int] = {}
        for part, _ in parts(found.config):
            for key, shape in part_shapes(part, found.config.dims()).items():
                kind = "experts" if key.startswith(("gate_up", "down")) else part.value
                kind = {"moe": "router", "head": "unembedding"}.get(kind, kind)
                is_mxfp4 = NAMES[found.layout][part][key].form is Form.MXFP4
                size = math.prod(shape) * 17 // 32 if is_mxfp4 else math.prod(shape) * itemsize
                sizes[kind] = sizes.get(kind, 0) + size
        sizes["kv_cache"] = found.config.kv_cache_bytes(context, itemsize)
        memory[name] = sizes | {"total": sum(sizes.values())}
    return memory


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 120  # a pipe has no width to fit into
    console = Console(width=wide, markup=False, highlight=False, emoji=False)
    console.print(report["path"], style="bold")
    if report.get("config") is not None:
        _show_config(console, report)
    _show_tensors(console, report["tensors"])
    if "memory" in report:
        _show_memory(console, report["memory"])
    for key in report.get("unrecognised_keys", ()):
        console.print(f"note: config.json has {_plain(key)}, which ossia does not know.")
    if not report["problems"]:
        console.print("Nothing is wrong with it.", style="green")
        return
    console.print("What is wrong with it:", style="bold red")
    for problem in report["problems"]:
        console.print(f"- {problem}", soft_wrap=True)


def _show_config(console: Console, report: dict[str, Any]) -> None:
    config, parameters = report["config"], report["parameters"]
    sliding = sum(config["sliding_layers"])
    console.print(
        f"{report['layout']} · {parameters['total']:,} parameters, "
        f"{parameters['active_per_token']:,} active per token"
    )
    console.print(
        f"{config['num_hidden_layers']} layers ({sliding} sliding over {config['sliding_window']}) "
        f"· width {config['hidden_size']} · {config['num_attention_heads']} heads of "
        f"{config['head_dim']}, {config['num_key_value_heads']} for keys and values"
    )
    console.print(
        f"{config['num_local_experts']} experts of {config['intermediate_size']}, "
        f"{config['num_experts_per_tok']} per token · vocabulary {config['vocab_size']:,} · "
        f"context {config['max_position_embeddings']:,}"
    )
    generation = report["generation"]
    if generation is not None:
        how = "sampled" if generation["do_sample"] else "greedy"
        console.print(f"{how} by default · ends at {list(generation['eos_token_ids'])}")


def _show_tensors(console: Console, tensors: list[dict[str, Any]]) -> None:
    """Tensors that differ only in their layer share a row."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for tensor in tensors:
        name = _LAYER.sub(lambda match: match[0].replace(match[1], "*"), tensor["name"])
        groups.setdefault((name, tensor["dtype"], str(tensor["shape"])), []).append(tensor["bytes"])
    rows = [
        (_plain(name), dtype, shape, str(len(sizes)), _size(sum(sizes)))
        for (name, dtype, shape), sizes in groups.items()
    ]
    total = sum(tensor["bytes"] for tensor in tensors)
    rows.append(("all tensors", "", "", str(len(tensors)), _size(total)))
    _table(console, ("tensor", "type", "shape", "count", "size"), rows)


def _show_memory(console: Console, memory: dict[str, Any]) -> None:
    in_bfloat16, in_float32 = memory["bfloat16"], memory["float32"]
    rows = [
        (kind.replace("_", " "), _size(in_bfloat16[kind]), _size(in_float32[kind]))
        for kind in in_bfloat16
    ]
    title = f"memory at {memory['context']:,} tokens"
    _table(console, (title, "bfloat16", "float32"), rows)


def _table(console: Console, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for n, title in enumerate(head):
        is_number = title in ("count", "size", "bfloat16", "float32")
        table.add_column(title, justify="right" if is_number else "left", no_wrap=n > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print()
    console.print(table)
    console.print()


def _plain(name: str) -> str:
    """A name out of a file, unable to drive the terminal."""
    return json.dumps(name)[1:-1]


def _size(count: int) -> str:
    """Decimal units, as disks and the hub have them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} B"

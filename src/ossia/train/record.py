"""The written record of a run beside its checkpoint: `run.json` for programs, `record.md` and
`loss.png` for people."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ossia import __version__
from ossia.train.loop import Progress
from ossia.train.recipe import NanoRecipe

SMOOTHED_STEPS = 20


@dataclass(frozen=True)
class RunRecord:
    recipe: NanoRecipe
    progress: Progress
    dtype: str

    def write(self, folder: Path) -> None:
        losses, tokens = self.progress.losses, self.progress.tokens
        values = {
            "ossia": __version__,
            "torch": torch.__version__,
            "machine": f"{platform.machine()} {platform.system()}",
            "threads": torch.get_num_threads(),
            "dtype": self.dtype,
            "steps": self.progress.step,
            "total_steps": self.progress.total,
            "decay_from": self.progress.decay_from,
            "seconds": round(self.progress.seconds, 1),
            "tokens": tokens,
            "tokens_per_second": round(tokens / max(self.progress.seconds, 1e-9)),
            "final_loss": round(_smoothed(losses)[-1], 5) if losses else None,
            "recipe": self.recipe.to_json(),
            "losses": [round(loss, 5) for loss in losses],
        }
        (folder / "run.json").write_text(json.dumps(values, indent=1) + "\n")
        (folder / "record.md").write_text(self._markdown(values))
        if losses:
            _plot(losses, self.progress.decay_from, folder / "loss.png")

    def _markdown(self, values: dict[str, Any]) -> str:
        facts = [
            "steps", "decay_from", "tokens", "seconds", "tokens_per_second", "final_loss", "dtype",
            "threads", "torch", "machine", "ossia",
        ]  # fmt: skip
        rows = [f"| {fact} | {values[fact]} |" for fact in facts]
        lines = ["# Training run of nano", "", "| | |", "|---|---|", *rows, ""]
        recipe = json.dumps(values["recipe"], indent=2, ensure_ascii=False)
        return "\n".join([*lines, "![loss](loss.png)", "", "```json", recipe, "```", ""])


def _smoothed(losses: list[float]) -> list[float]:
    means: list[float] = []
    for i in range(len(losses)):
        window = losses[max(0, i - SMOOTHED_STEPS + 1) : i + 1]
        means.append(sum(window) / len(window))
    return means


def _plot(losses: list[float], decay_from: int | None, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.semilogy(range(1, len(losses) + 1), losses, linewidth=0.5, alpha=0.4, label="step")
    axes.semilogy(
        range(1, len(losses) + 1), _smoothed(losses), label=f"mean of {SMOOTHED_STEPS} steps"
    )
    if decay_from is not None:
        axes.axvline(decay_from, color="grey", linestyle=":", label="decay begins")
    axes.set_xlabel("step")
    axes.set_ylabel("loss per token (nats)")
    axes.legend()
    figure.savefig(path, dpi=120)

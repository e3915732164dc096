"""The written record of a run beside its checkpoint: `run.json` for programs, `record.md` and
`loss.png` for people."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ossia import __version__
from ossia.train.export import Fidelity
from ossia.train.files import replacing
from ossia.train.loop import Progress
from ossia.train.recipe import Recipe

SMOOTHED_STEPS = 20


@dataclass(frozen=True)
class RunRecord:
    recipe: Recipe
    progress: Progress
    dtype: str
    fidelity: Fidelity | None = None
    """Known after the export."""

    def write(self, folder: Path) -> None:
        """Replaces what an earlier stage wrote."""
        values = self._values()
        names = [folder / name for name in ("run.json", "record.md", "loss.png")]
        with replacing(*names) as (as_json, as_markdown, picture):
            as_json.write_text(json.dumps(values, indent=1) + "\n")
            as_markdown.write_text(self._markdown(values), "utf-8")
            _plot(self.progress, picture)

    def _values(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "ossia": __version__,
            "torch": torch.__version__,
            "machine": f"{platform.machine()} {platform.system()}",
            "threads": torch.get_num_threads(),
            "dtype": self.dtype,
            "stage": progress.stage,
            "steps": len(progress.losses),
            "stages": progress.begins,
            "seconds": round(progress.seconds, 1),
            "tokens": progress.tokens,
            "tokens_per_second": round(progress.tokens / max(progress.seconds, 1e-9)),
            "final_loss": round(_smoothed(progress.losses)[-1], 5) if progress.losses else None,
            "expert_shares": progress.shares[-1][1:] if progress.shares else None,
            "fidelity": None if self.fidelity is None else asdict(self.fidelity),
            "recipe": self.recipe.to_json(),
            "losses": [round(loss, 5) for loss in progress.losses],
        }

    def _markdown(self, values: dict[str, Any]) -> str:
        facts = [
            "stage", "steps", "stages", "tokens", "seconds", "tokens_per_second", "final_loss",
            "expert_shares", "dtype", "threads", "torch", "machine", "ossia",
        ]  # fmt: skip
        rows = [f"| {fact} | {values[fact]} |" for fact in facts]
        lines = [f"# Training run of {self.recipe.name}", "", "| | |", "|---|---|", *rows, ""]
        if self.fidelity is not None:
            found = self.fidelity
            lines += [
                f"Exported and trained model on {found.tokens} tokens: KL {found.kl_rounded:.2g} "
                f"nats a token, largest difference of a logit {found.largest_difference:.2g}; "
                f"before rounding, KL {found.kl_unrounded:.2g}.",
                "",
            ]
        recipe = json.dumps(values["recipe"], indent=2, ensure_ascii=False)
        return "\n".join([*lines, "![loss](loss.png)", "", "```json", recipe, "```", ""])


def _smoothed(losses: list[float]) -> list[float]:
    means: list[float] = []
    for i in range(len(losses)):
        window = losses[max(0, i - SMOOTHED_STEPS + 1) : i + 1]
        means.append(sum(window) / len(window))
    return means


def _plot(progress: Progress, path: Path) -> None:
    """The loss above, the shares of the least and the most used expert below; dotted lines where
    stages begin."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses = progress.losses
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps = range(1, len(losses) + 1)
    above.semilogy(steps, losses, linewidth=0.5, alpha=0.4, label="step")
    above.semilogy(steps, _smoothed(losses), label=f"mean of {SMOOTHED_STEPS} steps")
    for name, begin in progress.begins.items():
        above.axvline(begin, color="grey", linestyle=":")
        above.annotate(name, (begin, max(losses)), xytext=(3, -8), textcoords="offset points")
    above.set_ylabel("loss per token (nats)")
    above.legend(loc="center right")
    if progress.shares:
        at, low, high = zip(*progress.shares, strict=True)
        below.plot(at, high, label="most used")
        below.plot(at, low, label="least used")
        below.axhline(1, color="grey", linewidth=0.5)
    below.set_ylabel("share of an expert\n(1 = even)")
    below.set_xlabel("step")
    below.legend(loc="upper right")
    figure.savefig(path, dpi=120, format="png")

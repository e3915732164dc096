"""Files that appear whole or not at all: written under another name, then renamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ossia.errors import TrainingError


@contextmanager
def replacing(*outputs: Path) -> Iterator[Sequence[Path]]:
    """Names to write to; they become `outputs` when the block ends without an error.

    Raises TrainingError when the disk does not take them; what was there before then stays.
    """
    partial = [path.with_name(f"{path.name}.partial") for path in outputs]
    try:
        outputs[0].parent.mkdir(parents=True, exist_ok=True)
        yield partial
        for unfinished, path in zip(partial, outputs, strict=True):
            unfinished.replace(path)
    except OSError as error:
        raise TrainingError(
            f"{outputs[0].parent}: {outputs[0].name} cannot be written "
            f"({(error.strerror or str(error)).lower()}); make room or name another folder. "
            "What was there before is unchanged."
        ) from error
    finally:
        with suppress(OSError):
            for unfinished in partial:
                unfinished.unlink(missing_ok=True)

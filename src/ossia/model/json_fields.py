"""JSON objects from files that nobody vouches for: bytes to a dict, and its fields with their types
and bounds checked.

Stricter than `json.loads`: a key given twice, NaN and Infinity are refused; a bool is no number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Never

from ossia.errors import ConfigError, OssiaError

MAX_JSON_BYTES = 16 * 2**20
"""No file of a model's configuration comes near; parsing a hostile one stays cheap below this."""

_MAX_NUMBER = 1e12  # far above any constant of a model; sums and products of two stay finite
_MEND = "correct the file, or fetch it again from where the model came"
_REQUIRED: Any = object()


def shown(value: object, limit: int = 80) -> str:
    """`value` for an error message: as JSON, in ASCII whatever it holds, cut to `limit`."""
    try:
        text = json.dumps(value, default=repr)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= limit else f"{text[:limit]}..."


def parse_object(data: bytes, source: str, error: type[OssiaError]) -> dict[str, Any]:
    """The JSON object in `data` (UTF-8). Raises `error`, one sentence that opens with `source`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {shown(twice)} is given twice")
        return result

    def refuse_constant(text: str) -> Never:
        raise ValueError(f"{text} is not a JSON number")

    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse_constant
        )
    except UnicodeDecodeError as failure:
        raise error(f"{source}: expected JSON in UTF-8, got {failure.reason}; {_MEND}.") from None
    except RecursionError:
        raise error(f"{source}: expected a JSON object, got one nested too deeply.") from None
    except ValueError as failure:
        raise error(f"{source}: expected a JSON object, but {failure}; {_MEND}.") from None
    if not isinstance(value, dict):
        raise error(f"{source}: expected a JSON object, got {shown(value)}; {_MEND}.")
    return value


def read_object(path: Path, error: type[OssiaError]) -> dict[str, Any]:
    """The JSON object in a file. Raises `error` when the file is absent, unreadable or no such."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise error(f"{path}: the file is missing; {_MEND}.") from None
    except OSError as failure:
        raise error(f"{path}: cannot be read ({failure.strerror}).") from None
    if len(data) > MAX_JSON_BYTES:
        raise error(f"{path}: expected at most {MAX_JSON_BYTES >> 20} MiB of JSON; {_MEND}.")
    return parse_object(data, str(path), error)


class Fields:
    """Reads the fields of a configuration. Every method raises ConfigError naming file and field;
    a field without `default` must be there. null counts as absent, as transformers writes it.
    """

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self._values = values
        self._unread = dict.fromkeys(values)
        self._source = source
        self._prefix = prefix

    def unread(self) -> list[str]:
        """Names that no method has asked for."""
        return list(self._unread)

    def refuse(self, name: str, expected: str, mend: str = _MEND) -> Never:
        plain = name if re.fullmatch(r"\w{1,80}", name, re.ASCII) else shown(name)
        field = f"{self._source}: {self._prefix}{plain}"
        if self._values.get(name) is None:
            raise ConfigError(f"{field} is missing, expected {expected}; {mend}.")
        came = shown(self._values[name])
        raise ConfigError(f"{field} must be {expected}, got {came}; {mend}.")

    def get(self, name: str) -> Any:
        """The raw value; None when absent."""
        self._unread.pop(name, None)
        return self._values.get(name)

    def integer(
        self, name: str, *, default: Any = _REQUIRED, minimum: int = 1, maximum: int = 2**31 - 1
    ) -> Any:
        value, expected = self.get(name), f"an integer from {minimum} to {maximum}"
        if value is None:
            return self._default(name, default, expected)
        if type(value) is not int or not minimum <= value <= maximum:
            self.refuse(name, expected)
        return value

    def number(
        self,
        name: str,
        *,
        default: Any = _REQUIRED,
        minimum: float = 0.0,
        maximum: float = _MAX_NUMBER,
        exclusive: bool = True,
    ) -> Any:
        """A float above `minimum`, or with `exclusive=False` also at it, and at most `maximum`."""
        bound = f"above {minimum:g}" if exclusive else f"of at least {minimum:g}"
        value, expected = self.get(name), f"a number {bound} and at most {maximum:g}"
        if value is None:
            return self._default(name, default, expected)
        if type(value) not in (int, float) or not minimum <= value <= maximum:
            self.refuse(name, expected)
        if exclusive and value == minimum:
            self.refuse(name, expected)
        return float(value)

    def boolean(self, name: str, *, default: Any = _REQUIRED) -> Any:
        value = self.get(name)
        if value is None:
            return self._default(name, default, "true or false")
        if type(value) is not bool:
            self.refuse(name, "true or false")
        return value

    def _default(self, name: str, default: Any, expected: str) -> Any:
        if default is _REQUIRED:
            self.refuse(name, expected)
        return default

    def token_ids(self, name: str, *, vocab_size: int) -> tuple[int, ...]:
        """One id or a list of them; () when absent."""
        value = self.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(type(token) is not int or not 0 <= token < vocab_size for token in ids):
            self.refuse(name, f"a token id below the vocabulary's {vocab_size}, or a list of them")
        return tuple(dict.fromkeys(ids))

    def constant(self, name: str, value: object, reason: str) -> None:
        """The field is absent, or exactly `value`, because ossia computes nothing else."""
        came = self.get(name)
        if came is not None and (came != value or type(came) is not type(value)):
            self.refuse(name, f"{shown(value)}: {reason}", "ossia runs gpt-oss models as published")

    def object(self, name: str) -> Fields | None:
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(name, "an object")
        return Fields(value, self._source, f"{self._prefix}{name}.")

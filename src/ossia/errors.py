"""Every error that ossia raises for its callers: one sentence with what was expected, what came,
and the mend.

Each class is also the standard-library type it refines, so `except ValueError` and `except
OssiaError` both work. The command line prints `str(error)` and nothing else; a bare stack trace is
a defect.
"""


class OssiaError(Exception):
    """Base of all errors meant for the caller."""


class UsageError(OssiaError, ValueError):
    """An argument that cannot be meant: exit code 2 on the command line."""


class ConfigError(OssiaError, ValueError):
    """A model configuration that is incomplete, unknown or contradicts itself."""


class CheckpointError(OssiaError, ValueError):
    """A checkpoint file or tensor that is missing, extra, misshapen, mistyped, overlapping or
    truncated.
    """


class ModelNotFoundError(OssiaError, FileNotFoundError):
    """A model name or folder that does not lead to a checkpoint."""

    def __str__(self) -> str:  # FileNotFoundError would print its errno form
        return str(self.args[0]) if self.args else ""


class HubError(OssiaError, ConnectionError):
    """The model hub cannot be reached, refuses, or sends something else than it promised."""


class TokenizerError(OssiaError, ValueError):
    """A vocabulary that cannot be loaded or lacks what Harmony needs."""


class ConversationError(OssiaError, ValueError):
    """A conversation that cannot be rendered: a role, content or tool breaks Harmony's rules."""


class KernelError(OssiaError, ValueError):
    """An op called with shapes or types that it does not take."""


class UnsupportedError(OssiaError, NotImplementedError):
    """Something that these kernels, this machine or this build does not do; the message names the
    mend.
    """


class MissingDependencyError(OssiaError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


class RequestError(OssiaError, ValueError):
    """A generation request that the engine refuses, such as a prompt longer than the context."""


class EngineError(OssiaError, RuntimeError):
    """The engine stopped or a step failed; every request in flight has been told."""


class TrainingError(OssiaError, RuntimeError):
    """A training run that cannot go on, or data that it cannot use; the message names the step, or
    the file and the line."""

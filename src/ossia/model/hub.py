"""From a model's name to its folder (no network), and from the hub into the local cache.

The cache is Hugging Face's own, in its documented layout, so that what transformers or anything
else has fetched is found: `models--ORG--NAME/{refs/REVISION, snapshots/COMMIT/FILE → blobs/ETAG}`.
Downloading is done here because `snapshot_download` starts a file of 5 GB anew after Ctrl-C; here
it goes on where it stopped, and every file is held against the hash that the hub lists.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from ossia.errors import ConfigError, HubError, MissingDependencyError, ModelNotFoundError
from ossia.model.checkpoint import CONFIG, GENERATION_CONFIG, INDEX, SINGLE_FILE
from ossia.model.config import ModelConfig
from ossia.model.json_fields import read_object, shown

if TYPE_CHECKING:
    from types import ModuleType

DEFAULT_REVISION = "main"
_NEEDED = (
    CONFIG,
    GENERATION_CONFIG,
    "tokenizer*.json",
    INDEX,
    SINGLE_FILE,
    "model-*-of-*.safetensors",
)
"""Files at the top of a repository; not `original/` and `metal/`, the same weights again."""
_HUB_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
_TIMEOUT = 10.0  # seconds without a byte
_ATTEMPTS = 3  # in a row that bring nothing
_TRANSIENT = (408, 429, 500, 502, 503, 504)

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes of the whole model."""


def resolve_model(name: str | Path) -> Path:
    """The folder of a model: `nano` is the embedded one, a path is itself, and ORG/NAME (or
    ORG/NAME@REVISION) is looked up in the local cache. Uses no network.

    Raises ModelNotFoundError, which says how to get the model.
    """
    if str(name) == "nano":
        return _nano()
    path = Path(name).expanduser()
    if str(name) and path.exists():
        return path
    match = _HUB_NAME.fullmatch(str(name))
    if match is None:
        raise ModelNotFoundError(
            f"{shown(str(name))}: no such folder, and no name on the hub; expected `nano`, a "
            "folder, or a name such as openai/gpt-oss-20b."
        )
    repository = _CachedRepository.of(match["repository"])
    snapshot = repository.snapshot(match["revision"] or DEFAULT_REVISION)
    if snapshot is None:
        revision = f" --revision {match['revision']}" if match["revision"] else ""
        raise ModelNotFoundError(
            f"{name}: no such folder, and no model of that name has been fetched; "
            f"`ossia pull {match['repository']}{revision}` fetches it."
        )
    return snapshot


def _nano() -> Path:
    import ossia.nano

    folder = Path(ossia.nano.__file__).parent
    if not (folder / CONFIG).exists():
        raise ModelNotFoundError(
            "nano: this installation has no embedded model; name another with --model."
        )
    return folder


def pull(name: str, *, revision: str = DEFAULT_REVISION, progress: Progress | None = None) -> Path:
    """Fetch what is needed of a model on the hub into the local cache; returns its folder.

    Goes on where an interrupted call stopped. The revision is registered when all is there, so
    `resolve_model` never finds half a model. HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are
    respected.

    Raises ModelNotFoundError (no such model or revision, or none that ossia runs), HubError
    (unreachable, refused, wrong contents, disk full), MissingDependencyError, ConfigError.
    """
    match = _HUB_NAME.fullmatch(name)
    if match is None or match["revision"]:
        raise ModelNotFoundError(
            f"{shown(name)}: expected a name on the hub such as openai/gpt-oss-20b."
        )
    hub = _huggingface_hub()
    repository = _CachedRepository.of(name)
    with _disk_errors(repository.folder):
        commit, files = _ask(hub, name, revision)
        total = sum(file.size for file in files)
        missing = [file for file in files if not repository.has(commit, file)]
        done = total - sum(file.size for file in missing)
        repository.folder.mkdir(parents=True, exist_ok=True)
        _refuse_full_disk(repository, missing)
        for file in files:
            if file in missing:
                url = f"{hub.HfApi().endpoint}/{name}/resolve/{commit}/{quote(file.name)}"
                _fetch(
                    hub, url, file, repository, lambda n, at=done: _tell(progress, at + n, total)
                )
                repository.link(commit, file)
                done += file.size
            if file.name == CONFIG:  # before 14 GB of something else come down
                _refuse_other_models(name, repository.snapshots / commit / CONFIG)
        repository.register(revision, commit)
    _tell(progress, total, total)
    return repository.snapshots / commit


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _refuse_other_models(name: str, config: Path) -> None:
    try:
        ModelConfig.from_json(read_object(config, ConfigError), CONFIG)
    except ConfigError as error:
        raise ConfigError(f"{name} cannot be run: {error}") from None


@dataclass(frozen=True)
class _RemoteFile:
    name: str
    size: int
    etag: str
    """The name of its blob: sha256 of a large file, git's sha1 of a small one."""


@dataclass(frozen=True)
class _CachedRepository:
    """The part of the cache that belongs to one model."""

    folder: Path

    @classmethod
    def of(cls, name: str) -> _CachedRepository:
        environ = os.environ
        home = environ.get("HF_HOME") or os.path.join(
            environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
        )
        cache = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
        cache = os.path.expandvars(os.path.expanduser(cache or os.path.join(home, "hub")))
        return cls(Path(cache) / f"models--{name.replace('/', '--')}")

    @property
    def snapshots(self) -> Path:
        return self.folder / "snapshots"

    def snapshot(self, revision: str) -> Path | None:
        """The folder of a branch, tag or commit, if it has been fetched."""
        if ".." in revision.split("/"):
            return None
        ref = self.folder / "refs" / revision
        commit = ref.read_text().strip() if ref.is_file() else revision
        snapshot = self.snapshots / commit
        return snapshot if snapshot.is_dir() else None

    def has(self, commit: str, file: _RemoteFile) -> bool:
        path = self.snapshots / commit / file.name
        return path.is_file() and path.stat().st_size == file.size

    def blob(self, file: _RemoteFile) -> Path:
        return self.folder / "blobs" / file.etag

    def partial(self, file: _RemoteFile) -> Path:
        return self.folder / "blobs" / f"{file.etag}.ossia-partial"

    def link(self, commit: str, file: _RemoteFile) -> None:
        path = self.snapshots / commit / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(os.path.relpath(self.blob(file), path.parent))

    def register(self, revision: str, commit: str) -> None:
        ref = self.folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        new = ref.with_name(f"{ref.name}.ossia-{os.getpid()}")
        new.write_text(commit)
        new.replace(ref)


def _huggingface_hub() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise MissingDependencyError(
            "`ossia pull` needs the package huggingface-hub: install ossia[hub]."
        ) from None
    return huggingface_hub


def _ask(hub: ModuleType, name: str, revision: str) -> tuple[str, list[_RemoteFile]]:
    """The commit that a revision is now, and its files that are needed, small ones first."""
    with _hub_errors(hub, name, revision):
        try:
            info = hub.HfApi().model_info(
                name, revision=revision, files_metadata=True, timeout=_TIMEOUT
            )
            files = [_remote_file(file) for file in info.siblings if _is_needed(file.rfilename)]
        except hub.errors.HFValidationError as failure:
            raise ModelNotFoundError(f"{name}: no name on the hub can be this one.") from failure
        except (ValueError, TypeError, KeyError, AttributeError) as failure:  # a captive portal, …
            endpoint = hub.HfApi().endpoint
            raise HubError(f"{name}: {endpoint} did not answer as a model hub does.") from failure
    names = {file.name for file in files}
    if CONFIG not in names or not any(name.endswith(".safetensors") for name in names):
        raise ModelNotFoundError(
            f"{name}: expected a model with {CONFIG} and model*.safetensors, but the hub has none "
            "of that form under this name."
        )
    hashes = [file.etag for file in files] + [info.sha]
    if not all(isinstance(h, str) and re.fullmatch(r"[0-9a-f]{40,64}", h) for h in hashes):
        raise HubError(f"{name}: the hub lists no usable hashes for its files.")
    return info.sha, sorted(files, key=lambda file: (file.name != CONFIG, file.size))


def _is_needed(file_name: str) -> bool:
    return re.fullmatch(r"[\w. -]+", file_name, re.ASCII) is not None and any(
        fnmatch.fnmatchcase(file_name, pattern) for pattern in _NEEDED
    )


def _remote_file(listed: Any) -> _RemoteFile:
    etag = listed.lfs.sha256 if listed.lfs is not None else listed.blob_id
    return _RemoteFile(name=listed.rfilename, size=int(listed.size), etag=etag)


@contextmanager
def _hub_errors(hub: ModuleType, name: str, revision: str = "") -> Iterator[None]:
    """Turns what huggingface_hub and its HTTP client raise into one sentence."""
    import httpx2

    endpoint, errors = hub.HfApi().endpoint, hub.errors
    try:
        yield
    except errors.RevisionNotFoundError:
        raise ModelNotFoundError(f"{name}: the hub has no revision {revision} of it.") from None
    except errors.GatedRepoError:
        raise HubError(
            f"{name}: its owner grants access one by one; ask there, then set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFoundError(
            f"{name}: {endpoint} has no such model (or it is private: set HF_TOKEN)."
        ) from None
    except errors.OfflineModeIsEnabled:
        raise HubError("HF_HUB_OFFLINE is set, so nothing can be fetched; unset it.") from None
    except errors.HfHubHTTPError as failure:
        status = failure.response.status_code
        raise HubError(f"{name}: {endpoint} answered {status}; try again later.") from failure
    except (httpx2.TransportError, httpx2.InvalidURL) as failure:
        reason = str(failure) or type(failure).__name__
        raise HubError(
            f"{name}: {endpoint} cannot be reached ({reason}); run it again when there is a "
            "connection, what has arrived is kept."
        ) from failure


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (HubError, ModelNotFoundError):  # OSErrors too
        raise
    except OSError as failure:
        mend = "; free some space and run it again" if failure.errno == errno.ENOSPC else ""
        place = failure.filename or folder
        raise HubError(f"{place}: cannot be used ({failure.strerror}){mend}.") from failure


def _refuse_full_disk(repository: _CachedRepository, files: list[_RemoteFile]) -> None:
    partials = [repository.partial(file) for file in files]
    had = sum(path.stat().st_size for path in partials if path.exists())
    needed = sum(f.size for f in files if not repository.blob(f).exists()) - had
    free = shutil.disk_usage(repository.folder).free
    if needed > free:
        raise HubError(
            f"{repository.folder}: needs {needed / 1e9:.1f} GB, but the disk has "
            f"{free / 1e9:.1f} GB left; set HF_HOME to another disk."
        )


def _fetch(
    hub: ModuleType,
    url: str,
    file: _RemoteFile,
    repository: _CachedRepository,
    report: Callable[[int], None],
) -> None:
    """Bring one file into `blobs`, going on from what is there of it, and check its hash."""
    if repository.blob(file).exists():
        return
    path = repository.partial(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as partial:
        try:
            fcntl.flock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HubError(f"{file.name}: another process is fetching it; wait for that.") from None
        with _hub_errors(hub, file.name):
            _receive(hub, url, file, partial, report)
        partial.flush()
        os.fsync(partial.fileno())
        if _digest(path, file) != file.etag:
            path.unlink()
            raise HubError(
                f"{file.name}: what arrived has not the hash that the hub lists; it was deleted, "
                "run the command again."
            )
    path.rename(repository.blob(file))


def _receive(
    hub: ModuleType, url: str, file: _RemoteFile, partial: BinaryIO, report: Callable[[int], None]
) -> None:
    """Append until the file has its size; gives up after some attempts that brought nothing."""
    import httpx2

    failures = 0
    while (had := partial.seek(0, os.SEEK_END)) < file.size:
        failure: Exception | None = None
        try:
            _append(hub, url, file, partial, report)
        except httpx2.TransportError as error:
            failure = error
        except hub.errors.HfHubHTTPError as error:
            if error.response.status_code not in _TRANSIENT:
                raise
            failure = error
        failures = 0 if partial.tell() > had else failures + 1
        if failures == _ATTEMPTS:
            raise failure or HubError(f"{file.name}: the hub sends nothing; try again later.")
        if failure is not None:
            time.sleep(2**failures / 2)


def _append(
    hub: ModuleType, url: str, file: _RemoteFile, partial: BinaryIO, report: Callable[[int], None]
) -> None:
    had = partial.tell()
    headers: dict[str, Any] = hub.utils.build_hf_headers() | {"Accept-Encoding": "identity"}
    if had:
        headers["Range"] = f"bytes={had}-"
    session = hub.get_session()
    with session.stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
        hub.utils.hf_raise_for_status(response)
        if had and response.status_code != 206:  # the whole file comes again
            partial.truncate(0)
            had = partial.seek(0)
        report(had)
        for chunk in response.iter_raw():  # as it comes: nothing waits in a buffer to be lost
            had += partial.write(chunk)
            if had > file.size:
                partial.truncate(0)
                raise HubError(
                    f"{file.name}: the hub sends more than the {file.size} bytes listed."
                )
            report(had)


def _digest(path: Path, file: _RemoteFile) -> str:
    """sha256, or git's hash of a blob: sha1 of its header and contents."""
    if len(file.etag) == 64:
        with path.open("rb") as contents:
            return hashlib.file_digest(contents, "sha256").hexdigest()
    header = b"blob %d\0" % file.size
    return hashlib.sha1(header + path.read_bytes(), usedforsecurity=False).hexdigest()

"""Names to folders, and fetching from a hub on loopback: whole, resumed, corrupt, unreachable."""

import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest

from checkpoints import random_checkpoint
from fake_hub import COMMIT, isolate, serving
from ossia.errors import ConfigError, HubError, MissingDependencyError, ModelNotFoundError
from ossia.model import hub as hub_module
from ossia.model.checkpoint import open_checkpoint
from ossia.model.hub import pull, resolve_model

huggingface_hub = pytest.importorskip("huggingface_hub")
hub_constants = pytest.importorskip("huggingface_hub.constants")

NAME = "someone/tiny"
NEEDED = [
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
]
SHARD = NEEDED[3]


@pytest.fixture
def files(tmp_path):
    """A model as it lies on the hub, with all that is not needed of it."""
    folder = random_checkpoint(tmp_path / "source", shards=2)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{ }")
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    unneeded = (
        "original/config.json",
        "original/model.safetensors",
        "metal/model.bin",
        "README.md",
    )
    return contents | dict.fromkeys(unneeded, b"x" * 5000)


@pytest.fixture
def environment(tmp_path, monkeypatch):
    isolate(monkeypatch, tmp_path / "hf")
    return monkeypatch


@pytest.fixture
def hub(files, environment):
    with serving(files) as hub:
        environment.setattr(hub_constants, "ENDPOINT", hub.url)
        yield hub


def cached(tmp_path):
    return tmp_path / "hf" / "hub" / "models--someone--tiny"


def test_fetches_what_is_needed_and_no_more(hub, tmp_path):
    seen = []
    folder = pull(NAME, progress=lambda *at: seen.append(at))
    assert folder == cached(tmp_path) / "snapshots" / COMMIT
    assert sorted(path.name for path in folder.iterdir()) == NEEDED
    for name in NEEDED:
        assert (folder / name).read_bytes() == hub.files[name]
    assert resolve_model(NAME) == resolve_model(f"{NAME}@main") == folder
    open_checkpoint(folder)
    total = sum(len(hub.files[name]) for name in NEEDED)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_huggingface_hub_finds_what_was_fetched(hub):
    folder = pull(NAME)
    for name in NEEDED:
        found = huggingface_hub.try_to_load_from_cache(NAME, name, cache_dir=folder.parents[2])
        assert found == str(folder / name)
    info = huggingface_hub.scan_cache_dir(folder.parents[2])
    assert not info.warnings
    [repo] = info.repos
    assert {file.file_name for r in repo.revisions for file in r.files} == set(NEEDED)


def test_finds_what_huggingface_hub_fetched(hub, tmp_path):
    """Into the same cache by its own snapshot_download, which reads HF_ENDPOINT when imported."""
    program = (
        "import sys, huggingface_hub;"
        "print(huggingface_hub.snapshot_download(sys.argv[1], allow_patterns='*config.json'))"
    )
    theirs = subprocess.run(
        [sys.executable, "-c", program, NAME],
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(resolve_model(NAME)) == theirs.stdout.strip()
    hub.requests.clear()
    pull(NAME)
    assert hub.fetched("config.json") == hub.fetched("generation_config.json") == []
    assert hub.fetched(SHARD) == [None]


def test_a_second_call_fetches_nothing(hub):
    pull(NAME)
    hub.requests.clear()
    pull(NAME)
    assert [path for _, path, _ in hub.requests] == [f"/api/models/{NAME}/revision/main"]


def test_another_revision_shares_the_files(hub):
    folder = pull(NAME, revision="v2")
    with pytest.raises(ModelNotFoundError, match="ossia pull someone/tiny` fetches it"):
        resolve_model(NAME)
    assert resolve_model(f"{NAME}@v2") == resolve_model(f"{NAME}@{COMMIT}") == folder
    with pytest.raises(ModelNotFoundError, match="pull someone/tiny --revision v3` fetches it"):
        resolve_model(f"{NAME}@v3")


def test_a_dropped_connection_goes_on_within_the_call(hub):
    size = len(hub.files[SHARD])
    hub.cut_after[SHARD] = size // 3 + 1
    folder = pull(NAME)
    step = size // 3 + 1
    assert hub.fetched(SHARD) == [None, f"bytes={step}-", f"bytes={2 * step}-"]
    assert (folder / SHARD).read_bytes() == hub.files[SHARD]


def test_an_interrupted_call_is_resumed_by_the_next(hub, tmp_path):
    last = max(NEEDED, key=lambda name: len(hub.files[name]))
    size = len(hub.files[last])

    def interrupt(done, total):
        if total - done <= size // 2:
            raise KeyboardInterrupt

    hub.cut_after[last] = size * 2 // 3
    with pytest.raises(KeyboardInterrupt):
        pull(NAME, progress=interrupt)
    with pytest.raises(ModelNotFoundError):
        resolve_model(NAME)
    [partial] = cached(tmp_path).glob("blobs/*.ossia-partial")
    had = partial.stat().st_size
    assert 0 < had < size
    hub.requests.clear()
    hub.cut_after.clear()
    folder = pull(NAME)
    assert [path for _, path, _ in hub.requests if path.startswith("/cdn")] == [f"/cdn/{last}"]
    assert hub.fetched(last) == [f"bytes={had}-"]
    assert (folder / last).read_bytes() == hub.files[last]
    assert not list(cached(tmp_path).glob("blobs/*.ossia-partial"))


def test_a_hub_that_ignores_ranges(hub):
    hub.cut_after[SHARD] = 1000
    hub.ignore_ranges = True
    with pytest.raises(HubError, match="cannot be reached"):
        pull(NAME)
    hub.cut_after.clear()
    folder = pull(NAME)
    assert (folder / SHARD).read_bytes() == hub.files[SHARD]


@pytest.mark.parametrize("file", [SHARD, "tokenizer.json"])
def test_a_corrupt_file_is_never_kept(hub, tmp_path, file):
    hub.corrupt.add(file)
    with pytest.raises(HubError, match=f"^{file}: what arrived has not the hash"):
        pull(NAME)
    with pytest.raises(ModelNotFoundError):
        resolve_model(NAME)
    hub.corrupt.clear()
    folder = pull(NAME)
    assert hub.fetched(file) == [None, None]
    assert (folder / file).read_bytes() == hub.files[file]


def test_a_corrupt_beginning_is_found_out_too(hub, tmp_path):
    hub.cut_after[SHARD] = 0
    with pytest.raises(HubError):
        pull(NAME)
    [partial] = cached(tmp_path).glob("blobs/*.ossia-partial")
    partial.write_bytes(b"not what it should be")
    hub.cut_after.clear()
    with pytest.raises(HubError, match="has not the hash"):
        pull(NAME)
    pull(NAME)


def test_a_file_of_wrong_size_in_the_cache_is_fetched_again(hub):
    folder = pull(NAME)
    path = (folder / SHARD).resolve()
    path.write_bytes(b"short")
    path.rename(path.with_name("elsewhere"))
    assert (pull(NAME) / SHARD).read_bytes() == hub.files[SHARD]


def test_transient_failures_are_retried_and_others_are_not(hub):
    hub.fail_with[SHARD] = [503, 429]
    pull(NAME)
    assert len(hub.fetched(SHARD)) == 3


@pytest.mark.parametrize(("statuses", "asked"), [([500] * 9, 3), ([403] * 9, 1), ([410] * 9, 1)])
def test_lasting_failures_are_told(hub, statuses, asked):
    hub.fail_with[SHARD] = statuses
    with pytest.raises(HubError, match=rf"{SHARD}: {hub.url} answered {statuses[0]}"):
        pull(NAME)
    assert len(hub.fetched(SHARD)) == asked


def test_unknown_names(hub):
    with pytest.raises(ModelNotFoundError, match=r"someone/else: .* has no such model"):
        pull("someone/else")
    with pytest.raises(ModelNotFoundError, match="the hub has no revision v9 of it"):
        pull(NAME, revision="v9")
    with pytest.raises(HubError, match="grants access one by one"):
        pull("someone/gated")
    for name in ("gpt-oss-20b", "a/b/c", "../etc", f"{NAME}@main", "a--b/..", ""):
        with pytest.raises(ModelNotFoundError, match="hub"):
            pull(name)
    assert not any("else" in path for _, path, _ in hub.requests if path.startswith("/cdn"))


def test_models_of_other_forms(hub):
    del hub.files["config.json"]
    with pytest.raises(ModelNotFoundError, match=r"expected a model with config\.json and model"):
        pull(NAME)
    hub.files["config.json"] = json.dumps({"model_type": "llama"}).encode()
    with pytest.raises(ConfigError, match=r"^someone/tiny cannot be run: config\.json: model_type"):
        pull(NAME)
    assert hub.fetched(SHARD) == []


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>sign in to the network</html>",
        b"[]",
        b"{}",
        json.dumps({"id": NAME, "sha": COMMIT, "siblings": None}).encode(),
        json.dumps(
            {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": "config.json"}]}
        ).encode(),
    ],
)
def test_an_answer_of_something_else(hub, answer):
    hub.model_info = answer
    with pytest.raises((HubError, ModelNotFoundError), match=NAME):
        pull(NAME)


def test_hostile_listings(hub, tmp_path):
    listing = json.loads(hub.description())
    listing["siblings"][0]["blobId"] = "../../../escape"
    listing["siblings"][0].pop("lfs", None)
    listing["siblings"][0]["rfilename"] = "config.json"
    hub.model_info = json.dumps(listing).encode()
    with pytest.raises(HubError, match="lists no usable hashes"):
        pull(NAME)
    listing = json.loads(hub.description())
    listing["siblings"] += [
        {"rfilename": "../tokenizer_evil.json", "size": 1, "blobId": "a" * 40},
        {"rfilename": "tokenizer/../../x.json", "size": 1, "blobId": "a" * 40},
    ]
    hub.model_info = json.dumps(listing).encode()
    folder = pull(NAME)
    assert sorted(path.name for path in folder.iterdir()) == NEEDED


def test_more_bytes_than_listed(hub):
    listing = json.loads(hub.description())
    entry = next(e for e in listing["siblings"] if e["rfilename"] == "tokenizer.json")
    entry["size"] = 1
    hub.model_info = json.dumps(listing).encode()
    with pytest.raises(HubError, match=r"tokenizer\.json: the hub sends more than the 1 bytes"):
        pull(NAME)


def test_a_full_disk_is_told_before_the_download(hub, environment):
    class Usage:
        free = 1000

    environment.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(HubError, match=r"needs .* GB, but the disk has .* set HF_HOME"):
        pull(NAME)
    assert hub.fetched("config.json") == []


def test_a_cache_that_cannot_be_written(hub, tmp_path):
    (tmp_path / "hf").touch()
    with pytest.raises(HubError, match=r"hf.*cannot be used \(Not a directory\)"):
        pull(NAME)


def test_a_disk_that_fills_up_meanwhile(hub, tmp_path, environment):
    """The file size limit fails a write in mid-file, as a full disk does; what came is kept."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(HubError, match=r"models--someone--tiny.*\(File too large\)"):
            pull(NAME)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    [partial] = cached(tmp_path).glob("blobs/*.ossia-partial")
    assert partial.stat().st_size > 0
    open_checkpoint(pull(NAME))


def test_two_at_once(hub, tmp_path):
    """The second is told to wait, and the first's file is untouched."""
    pull(NAME)
    blob = (cached(tmp_path) / "snapshots" / COMMIT / SHARD).resolve()
    blob.rename(blob.with_name(f"{blob.name}.ossia-partial"))
    with blob.with_name(f"{blob.name}.ossia-partial").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(HubError, match="another process is fetching it"):
            pull(NAME)
    pull(NAME)


def test_an_unreachable_hub_is_one_sentence(environment):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    environment.setattr(hub_constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(HubError, match=rf"someone/tiny: http://127.0.0.1:{port} cannot be reached"):
        pull(NAME)
    assert time.monotonic() - began < 5


def test_offline_is_respected(hub, environment):
    environment.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        pull(NAME)
    assert hub.requests == []


def test_without_huggingface_hub(environment):
    environment.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"install ossia\[hub\]"):
        pull(NAME)


# -- Names -----------------------------------------------------------------------------------------


def test_folders_go_before_hub_names(tmp_path, environment):
    environment.chdir(tmp_path)
    (tmp_path / "openai" / "gpt-oss-20b").mkdir(parents=True)
    assert resolve_model("openai/gpt-oss-20b").samefile(tmp_path / "openai" / "gpt-oss-20b")
    assert resolve_model(tmp_path) == tmp_path
    environment.setenv("HOME", str(tmp_path))
    assert resolve_model("~/openai") == tmp_path / "openai"


def test_names_that_lead_nowhere(environment):
    with pytest.raises(ModelNotFoundError, match="`ossia pull openai/gpt-oss-20b` fetches it"):
        resolve_model("openai/gpt-oss-20b")
    for name in ("gpt-oss-20b", "", "a/b/c", "../../x"):
        with pytest.raises(ModelNotFoundError, match="no such folder, and no name on the hub"):
            resolve_model(name)
    with pytest.raises(ModelNotFoundError):
        resolve_model("openai/gpt-oss-20b@../../..")


def test_nano_is_embedded(tmp_path, monkeypatch):
    import ossia.nano

    monkeypatch.setattr(ossia.nano, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ModelNotFoundError, match="no embedded model"):
        resolve_model("nano")
    (tmp_path / "config.json").touch()
    assert resolve_model("nano") == tmp_path


@pytest.mark.parametrize(
    "variables",
    [
        {"HF_HUB_CACHE": "{}/c"},
        {"HUGGINGFACE_HUB_CACHE": "{}/c"},
        {"HF_HOME": "{}/c"},
        {"XDG_CACHE_HOME": "{}/c"},
        {"HOME": "{}/c"},
    ],
)
def test_the_cache_is_where_huggingface_hub_says(tmp_path, variables):
    """Its own reading of the environment, in a process of its own."""
    environ = {key: value.format(tmp_path) for key, value in variables.items()}
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")} | environ
    program = "import huggingface_hub.constants as c; print(c.HF_HUB_CACHE)"
    theirs = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        ours = hub_module._CachedRepository.of(NAME).folder.parent
    assert str(ours) == theirs.stdout.strip()


def test_resolving_loads_no_network_code(tmp_path):
    program = (
        "import sys; from ossia.model.hub import resolve_model; resolve_model(sys.argv[1]);"
        "assert not {'huggingface_hub', 'httpx2', 'socket', 'ssl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)

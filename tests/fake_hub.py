"""A model hub on loopback: what fetching a model needs, ours and huggingface_hub's own, with faults
on demand.
"""

import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"
LARGE = 4096
"""Files from this size on are LFS files: redirected, and listed with their sha256."""


@dataclass
class FakeHub:
    files: dict[str, bytes]
    name: str = "someone/tiny"
    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range header), in order."""
    cut_after: dict[str, int] = field(default_factory=dict)
    """Close the connection after so many bytes of this file, as long as it stands here."""
    corrupt: set[str] = field(default_factory=set)
    fail_with: dict[str, list[int]] = field(default_factory=dict)
    """Statuses with which to answer the next requests of a file."""
    ignore_ranges: bool = False
    model_info: bytes | None = None
    """Answer this in place of the repository's description."""

    def fetched(self, file):
        """Ranges with which a file was asked for."""
        return [r for _, path, r in self.requests if path.startswith(f"/cdn/{file}")]

    def hashes(self, name):
        """git's sha1 of the blob; sha256 of a large file, else None."""
        data = self.files[name]
        sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return sha1, hashlib.sha256(data).hexdigest() if len(data) >= LARGE else None

    def description(self):
        siblings = []
        for name, data in self.files.items():
            blob, sha256 = self.hashes(name)
            entry = {"rfilename": name, "size": len(data), "blobId": blob}
            if sha256 is not None:
                entry["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 100}
            siblings.append(entry)
        return json.dumps({"id": self.name, "sha": COMMIT, "siblings": siblings}).encode()

    def tree(self):
        entries = []
        for name, data in self.files.items():
            blob, sha256 = self.hashes(name)
            entry = {"type": "file", "path": name, "size": len(data), "oid": blob}
            if sha256 is not None:
                entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 100}
            entries.append(entry)
        return json.dumps(entries).encode()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    """Set in a subclass per hub."""

    protocol_version = "HTTP/1.1"

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # the client went away, as some tests have it
            self.close_connection = True

    def log_message(self, format, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self):
        name = unquote(urlsplit(self.path).path).removeprefix(f"/{self.hub.name}/resolve/{COMMIT}/")
        sha1, sha256 = self.hub.hashes(name)
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{sha256 or sha1}"')
        self.send_header("Content-Length", str(len(self.hub.files[name])))
        self.end_headers()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if match := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
            self.describe(*match.groups())
        elif path == f"/api/models/{self.hub.name}/tree/{COMMIT}":
            self.answer(200, self.hub.tree())
        elif match := re.fullmatch(rf"/{self.hub.name}/resolve/{COMMIT}/(.+)", path):
            self.answer(302, Location=f"{self.hub.url}/cdn/{match[1]}")
        elif path.startswith("/cdn/"):
            self.send_file(path.removeprefix("/cdn/"))
        else:
            self.answer(404)

    def describe(self, name, revision):
        if name == "someone/gated":
            self.answer(403, X_Error_Code="GatedRepo")
        elif name != self.hub.name:
            self.answer(404, X_Error_Code="RepoNotFound")
        elif revision not in ("main", "v2", COMMIT):
            self.answer(404, X_Error_Code="RevisionNotFound")
        else:
            self.answer(200, self.hub.model_info or self.hub.description())

    def send_file(self, name):
        if self.hub.fail_with.get(name):
            return self.answer(self.hub.fail_with[name].pop(0))
        data, begin = self.hub.files[name], 0
        total = len(data)
        if name in self.hub.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        asked = self.headers.get("Range")
        if asked and not self.hub.ignore_ranges:
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(total - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
        self.end_headers()
        end = begin + self.hub.cut_after.get(name, total)
        self.wfile.write(data[begin:end])
        if end < total:
            self.close_connection = True


@contextmanager
def serving(files, **options):
    hub = FakeHub(files, **options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def isolate(monkeypatch, home):
    """huggingface_hub with a cache of our own, no token, and no waiting between attempts."""
    from huggingface_hub import constants

    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

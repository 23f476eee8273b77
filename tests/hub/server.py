"""A Hub on 127.0.0.1, of the standard library alone: what huggingface_hub asks to create, push, list and load.

Repositories live in memory as commits; large files come by the LFS path (set HF_HUB_DISABLE_XET=1 in the client).
Faults are rules that the next matching requests run into.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
TOKENS = {  # token: (user, may write)
    WRITER: ("user", True),
    READER: ("user", False),
    STRANGER: ("stranger", True),
}


@dataclass
class Blob:
    """A file: `lfs` where it came by the LFS path."""

    data: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """The git hash; of a large file that of its pointer."""
        data = self.data
        if self.lfs:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, list[str]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        body = "".join(f"{name} {blob.oid}\n" for name, blob in sorted(files.items()))
        parent = self.branches.get(branch, [""])[-1]
        sha = hashlib.sha1(f"{parent}\n{message}\n{len(self.commits)}\n{body}".encode()).hexdigest()
        self.commits[sha], self.messages[sha] = files, message
        self.branches.setdefault(branch, []).append(sha)
        return sha

    def resolve(self, revision: str) -> str | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return revision if revision in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        sha = self.resolve(revision)
        assert sha is not None, revision
        return {name: blob.data for name, blob in self.commits[sha].items()}


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" matches `where`.

    kind: "status" answers `value`; "drop" closes the connection after `value` bytes of what was sent, or of the answer
    where nothing was sent; "lost" does what was asked and closes without an answer; "slow" does it and answers `value`
    seconds later; "forget" leaves the large files out of a commit and says nothing of it.
    """

    where: str
    kind: str
    value: float = 0
    times: int = 1
    hits: int = 0


class Hub:
    """The state of the server, shared with the test: `with Hub().running() as hub: ... hub.url`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.url = ""

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> str:
        """Puts a commit there as it is, in a new repository or an old one; files above a kilobyte count as large."""
        repository = self.repositories.setdefault(name, Repository(private))
        return repository.commit("main", {path: Blob(data, len(data) > 1000) for path, data in files.items()}, "added")

    def fault(self, where: str, kind: str, value: float = 0, times: int = 1) -> Fault:
        with self.lock:
            self.faults.append(Fault(where, kind, value, times))
            return self.faults[-1]

    def next_fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.hits < fault.times and re.search(fault.where, request):
                    fault.hits += 1
                    return fault
        return None

    @contextmanager
    def running(self) -> Iterator[Hub]:
        hub = self

        class Bound(Handler):
            pass

        Bound.hub = hub
        server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", commit: str = ""):
        self.status, self.code, self.message, self.commit = status, code, message, commit


class Dropped(Exception):
    """The connection is to be closed without a further byte."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: otherwise each answer waits 40 ms for an acknowledgement
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        split = urlsplit(self.path)
        self.route, self.query = split.path, parse_qs(split.query)
        request = f"{self.command} {self.route}"
        self.body, self.left = b"", int(self.headers.get("Content-Length") or 0)
        with self.hub.lock:
            self.hub.requests.append(request)
        self.fault = self.hub.next_fault(request)
        try:
            if self.fault is not None and self.fault.kind == "drop" and self.left:
                self.rfile.read(min(self.left, int(self.fault.value)))
                raise Dropped
            self.body = self._read_body()
            if self.fault is not None and self.fault.kind == "status":
                raise Refused(int(self.fault.value), message="a fault of the test")
            with self.hub.lock:
                answer = self._answer()
            if self.fault is not None and self.fault.kind == "slow":
                time.sleep(self.fault.value)
            if self.fault is not None and self.fault.kind == "lost":
                raise Dropped
            answer()
        except Refused as refused:
            commit = {"X_Repo_Commit": refused.commit} if refused.commit else {}
            self._send(refused.status, json.dumps({"error": refused.message}).encode(), code=refused.code, **commit)
        except (Dropped, BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            try:
                self.connection.shutdown(2)
            except OSError:
                pass

    def _read_body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(self.left)
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
            if self.fault is not None and self.fault.kind == "drop":
                raise Dropped
        self.rfile.readline()
        return b"".join(parts)

    # answering

    def _send(self, status: int, body: bytes = b"", code: str = "", **headers: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if said := status >= 400 and body and json.loads(body).get("error"):
            self.send_header("X-Error-Message", said)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            if self.fault is not None and self.fault.kind == "drop":
                self.wfile.write(body[: int(self.fault.value)])
                self.wfile.flush()
                raise Dropped
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> Callable[[], None]:
        body = json.dumps(value).encode()
        return lambda: self._send(status, body, Content_Type="application/json")

    # who asks

    def _user(self) -> tuple[str | None, bool]:
        given = self.headers.get("Authorization")
        if given is None:
            return None, False
        token = given.removeprefix("Bearer ")
        if token not in TOKENS:
            raise Refused(401, message="Invalid credentials in Authorization header")
        return TOKENS[token]

    def _readable(self, name: str) -> Repository:
        user, _ = self._user()
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and user != name.split("/")[0]):
            raise Refused(401 if user is None else 404, "RepoNotFound", "Repository not found")
        return repository

    def _writable(self, name: str) -> Repository:
        repository = self._readable(name)
        user, may_write = self._user()
        if user is None:
            raise Refused(401, message="Invalid username or password.")
        proposed = "create_pr" in self.query  # anybody with a token to write may propose a commit
        if not may_write or (user != name.split("/")[0] and not proposed):
            raise Refused(403, message="Forbidden: you must use a write token of an owner")
        return repository

    def _revision(self, repository: Repository, revision: str) -> str:
        sha = repository.resolve(unquote(revision))
        if sha is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    # what the test asks from another process

    def set_fault(self) -> Callable[[], None]:
        self.hub.faults = [Fault(**fault) for fault in json.loads(self.body)]
        return self._json({})

    def state(self, name: str) -> Callable[[], None]:
        repository = self.hub.repositories.get(name, Repository())
        shown = {branch: [repository.messages[sha] for sha in shas] for branch, shas in repository.branches.items()}
        return self._json({"branches": shown, "hits": [fault.hits for fault in self.hub.faults]})

    # what is asked

    def _answer(self) -> Callable[[], None]:
        for method, pattern, handle in _ROUTES:
            found = re.fullmatch(pattern, self.route)
            if method == self.command.replace("HEAD", "GET") and found:
                return handle(self, *(unquote(part) if part else part for part in found.groups()))
        raise Refused(404, message=f"no such page: {self.command} {self.route}")

    def whoami(self) -> Callable[[], None]:
        user, _ = self._user()
        if user is None:
            raise Refused(401, message="Invalid username or password.")
        return self._json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> Callable[[], None]:
        user, may_write = self._user()
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or user}/{asked['name']}"
        if user is None:
            raise Refused(401, message="Invalid username or password.")
        if not may_write or name.split("/")[0] != user:
            raise Refused(403, message="You don't have the rights to create a model under this namespace")
        there = name in self.hub.repositories
        if not there:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.repositories[name] = Repository(private)
            self.hub.repositories[name].commit("main", {".gitattributes": Blob(b"", False)}, "initial commit")
        return self._json({"url": f"{self.hub.url}/{name}", "name": name}, 409 if there else 200)

    def validate(self) -> Callable[[], None]:
        content = json.loads(self.body)["content"]
        if not re.match(r"---\n[\s\S]*?\n---\n", content):
            raise Refused(400, message="no metadata")
        return self._json({"errors": [], "warnings": []})

    def info(self, name: str, revision: str | None = None) -> Callable[[], None]:
        repository = self._readable(name)
        sha = self._revision(repository, revision or "main")
        files = repository.commits[sha]
        answer = {
            "_id": "0",
            "id": name,
            "modelId": name,
            "sha": sha,
            "private": repository.private,
            "siblings": [{"rfilename": path} for path in sorted(files)],
            "tags": [],
        }
        if "README.md" in files:
            card = files["README.md"].data.decode()
            for key, where in (("pipeline_tag", "pipeline_tag"), ("library_name", "library_name")):
                found = re.search(rf"^{where}: (.+)$", card, re.MULTILINE)
                answer |= {key: found[1]} if found else {}
        return self._json(answer)

    def refs(self, name: str) -> Callable[[], None]:
        branches = self._readable(name).branches
        listed = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": commits[-1]} for b, commits in branches.items()]
        return self._json({"branches": listed, "tags": [], "converts": []})

    def branch(self, name: str, branch: str) -> Callable[[], None]:
        repository = self._writable(name)
        if branch in repository.branches:
            raise Refused(409, message=f"Reference already exists: refs/heads/{branch}")
        start = self._revision(repository, (json.loads(self.body or b"{}") or {}).get("startingPoint") or "main")
        repository.branches[branch] = [start]
        return self._json({})

    def _entry(self, path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
        return entry

    def tree(self, name: str, revision: str) -> Callable[[], None]:
        repository = self._readable(name)
        files = repository.commits[self._revision(repository, revision)]
        return self._json([self._entry(path, blob) for path, blob in sorted(files.items())])

    def paths_info(self, name: str, revision: str) -> Callable[[], None]:
        repository = self._readable(name)
        files = repository.commits[self._revision(repository, revision)]
        asked = json.loads(self.body)["paths"]
        return self._json([self._entry(path, files[path]) for path in asked if path in files])

    def preupload(self, name: str, revision: str) -> Callable[[], None]:
        repository = self._writable(name)
        there = repository.commits[self._revision(repository, revision)]
        return self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                        "shouldIgnore": False,
                        "oid": self._known(there.get(file["path"])),
                    }
                    for file in json.loads(self.body)["files"]
                ]
            }
        )

    @staticmethod
    def _known(blob: Blob | None) -> str | None:
        return None if blob is None else blob.sha256 if blob.lfs else blob.oid

    def batch(self, name: str) -> Callable[[], None]:
        self._readable(name)
        if not self._user()[1]:
            raise Refused(403, message="Forbidden: you must use a write token")
        objects = []
        for asked in json.loads(self.body)["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.large:
                href = f"{self.hub.url}/lfs/{asked['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(answer)
        return self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> Callable[[], None]:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, message="the content has another hash")
        self.hub.large[oid] = self.body
        return self._json({})

    def verify(self, oid: str) -> Callable[[], None]:
        if len(self.hub.large.get(oid, b"")) != json.loads(self.body)["size"]:
            raise Refused(404, message="no such object")
        return self._json({})

    def commit(self, name: str, revision: str) -> Callable[[], None]:
        repository = self._writable(name)
        start = self._revision(repository, revision)
        files = dict(repository.commits[start])
        message, answer = "", {}
        if "create_pr" in self.query:
            number = 1 + sum(branch.startswith("refs/pr/") for branch in repository.branches)
            revision = f"refs/pr/{number}"
            repository.branches[revision] = [start]
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise Refused(400, message="an object was not uploaded")
                if self.fault is None or self.fault.kind != "forget":
                    files[value["path"]] = Blob(self.hub.large[value["oid"]], True)
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, message=f"unknown operation {entry['key']}")
        sha = repository.commit(revision, files, message)
        url = f"{self.hub.url}/{name}/commit/{sha}"
        return self._json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": "", **answer})

    def resolve(self, name: str, revision: str, path: str) -> Callable[[], None]:
        repository = self._readable(name)
        sha = self._revision(repository, revision)
        blob = repository.commits[sha].get(path)
        if blob is None:
            raise Refused(404, "EntryNotFound", "Entry not found", commit=sha)
        start, status = 0, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, status = int(wanted[1]), 206
        data = blob.data[start:]
        headers = {
            "X_Repo_Commit": sha,
            "ETag": f'"{blob.etag}"',
            "Accept_Ranges": "bytes",
            "Content_Length": str(len(data)),
            "Content_Type": "application/octet-stream",
        }
        if status == 206:
            headers["Content_Range"] = f"bytes {start}-{len(blob.data) - 1}/{len(blob.data)}"
        return lambda: self._send(status, data, **headers)


_NAME = r"([^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Callable[[], None]]]] = [
    ("POST", r"/_faults", Handler.set_fault),
    ("GET", rf"/_state/{_NAME}", Handler.state),
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("GET", rf"/api/models/{_NAME}", Handler.info),
    ("GET", rf"/api/models/{_NAME}/revision/([^/]+)", Handler.info),
    ("GET", rf"/api/models/{_NAME}/refs", Handler.refs),
    ("POST", rf"/api/models/{_NAME}/branch/([^/]+)", Handler.branch),
    ("GET", rf"/api/models/{_NAME}/tree/([^/]+)", Handler.tree),
    ("POST", rf"/api/models/{_NAME}/paths-info/([^/]+)", Handler.paths_info),
    ("POST", rf"/api/models/{_NAME}/preupload/([^/]+)", Handler.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(\w+)", Handler.upload),
    ("POST", r"/lfs/(\w+)/verify", Handler.verify),
    ("POST", rf"/api/models/{_NAME}/commit/([^/]+)", Handler.commit),
    ("GET", rf"/{_NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]

"""A stand-in for the Hugging Face hub on loopback, as far as its client talks to it when it publishes and downloads.

Two servers as in reality: the hub, and a storage of large files on another origin, to which no token may travel.
Endpoints and fields follow the requests of huggingface_hub 2.4.0 and git-lfs's batch API; what the real hub does beside
is left out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub.repos import LARGE, OWNER, READ_TOKEN, TOKEN, Fault, File, Repo, State

_NAME = r"(?P<repo>((datasets|spaces)/)?[\w.-]+/[\w.-]+)"
_API = r"/api/(?P<repo>(models|datasets|spaces)/[\w.-]+/[\w.-]+)"
"""Addresses of the API name models as such, those of files do not; nor do we: ada/shop, spaces/ada/shop."""


class RefusalError(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State
    routes: ClassVar[list[tuple[str, str, str]]] = []

    def log_message(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._handle
        raise AttributeError(name)

    def _handle(self) -> None:
        url = urlsplit(self.path)
        path = url.path
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.state.requests.append((self.command, path))
        self.fault = self.state.fault(self.command, path)
        length = int(self.headers.get("Content-Length") or 0)
        if self.fault is not None and self.fault.does == "cut" and length:
            self.rfile.read(length // 2)
            return self._cut()
        self.body = (
            self._chunks() if "chunked" in self.headers.get("Transfer-Encoding", "") else self.rfile.read(length)
        )
        if self.fault is not None and isinstance(self.fault.does, int):
            message = f"{self.fault.does} on purpose"
            return self.answer(self.fault.does, {"error": message}, {"X-Error-Message": message, **self.fault.headers})
        for method, pattern, name in self.routes:
            found = re.fullmatch(pattern, path)
            if method == self.command and found:
                try:
                    asked = {key: unquote(value).removeprefix("models/") for key, value in found.groupdict().items()}
                    with self.state.lock:
                        reply = getattr(self, name)(**asked)
                    return reply()
                except RefusalError as refused:
                    headers = {
                        "X-Error-Message": str(refused),
                        **({"X-Error-Code": refused.code} if refused.code else {}),
                    }
                    return self.answer(refused.status, {"error": str(refused)}, headers)
        return self.answer(404, {"error": f"no route for {self.command} {path}"})

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(2)

    def answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = b"" if value is None else json.dumps(value).encode()
        self.send_bytes(status, content, {"Content-Type": "application/json", **(headers or {})})

    def send_bytes(self, status: int, content: bytes, headers: dict[str, str], length: int | None = None) -> None:
        does = None if self.fault is None else self.fault.does
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        sent = content[: len(content) // 2] if does in ("short", "cut") else content
        if does == "wrong":
            sent = bytes(byte ^ 1 for byte in content)
        self.send_header("Content-Length", str(length or (len(content) if does == "cut" else len(sent))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
            if does == "cut":
                self._cut()

    def send_file(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.send_bytes(200, content, {"Accept-Ranges": "bytes", **headers})
        self.state.ranges.append(self.headers["Range"])
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        part = content[start : end + 1]
        return self.send_bytes(206, part, {"Content-Range": f"bytes {start}-{end}/{len(content)}", **headers})


class Storage(Handler):
    """Large files by their sha256; whoever knows the address may read and write."""

    routes: ClassVar = [
        ("PUT", r"/store/(?P<sha>\w{64})", "put"),
        ("PUT", r"/store/(?P<sha>\w{64})/(?P<part>\d+)", "put_part"),
        ("GET", r"/store/(?P<sha>\w{64})", "get"),
    ]

    def _handle(self) -> None:
        if "Authorization" in self.headers:
            self.state.leaked.append(self.path)
        super()._handle()

    def put(self, sha: str) -> Callable[[], None]:
        if hashlib.sha256(self.body).hexdigest() != sha:
            raise RefusalError(400, "other bytes than announced")
        self.state.storage[sha] = self.body
        return lambda: self.answer(200, None, {"ETag": f'"{sha}"'})

    def put_part(self, sha: str, part: str) -> Callable[[], None]:
        self.state.parts[sha, int(part)] = self.body
        return lambda: self.answer(200, None, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def get(self, sha: str) -> Callable[[], None]:
        content = self.state.storage[sha]
        return lambda: self.send_file(content, {"Content-Type": "application/octet-stream"})


class Hub(Handler):
    """The hub itself."""

    storage_url = ""
    routes: ClassVar = [
        ("POST", "/api/repos/create", "create"),
        ("POST", "/api/validate-yaml", "validate"),
        ("GET", _API, "info"),
        ("GET", rf"{_API}/revision/(?P<revision>[^/]+)", "info"),
        ("GET", rf"{_API}/tree/(?P<revision>[^/]+)", "tree"),
        ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", "branch"),
        ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "batch"),
        ("POST", rf"/{_NAME}\.git/info/lfs/objects/verify", "verify"),
        ("POST", r"/complete/(?P<sha>\w{64})", "complete"),
        ("HEAD", rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "resolve"),
        ("GET", rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "resolve"),
    ]

    @property
    def own_url(self) -> str:
        return f"http://{self.headers['Host']}"

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def require_login(self) -> None:
        if self.token not in (TOKEN, READ_TOKEN):
            raise RefusalError(401, "Invalid credentials in Authorization header")

    def require_writing(self, repo: str) -> None:
        self.require_login()
        if self.token != TOKEN or repo.split("/")[-2] != OWNER:
            raise RefusalError(403, f"you are not allowed to write to {repo}")

    def repo(self, name: str) -> Repo:
        found = self.state.repos.get(name)
        if found is None or (found.private and self.token not in (TOKEN, READ_TOKEN)):
            # which of both it is, nobody is told
            raise RefusalError(
                404 if self.token in (TOKEN, READ_TOKEN) else 401, "Repository not found", "RepoNotFound"
            )
        return found

    def at(self, name: str, revision: str) -> tuple[Repo, str]:
        repo = self.repo(name)
        oid = repo.resolve(revision)
        if oid is None:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, oid

    def create(self) -> Callable[[], None]:
        asked = json.loads(self.body)
        self.require_login()
        kind = asked.get("type") or "model"
        prefix = "" if kind == "model" else f"{kind}s/"
        name = f"{prefix}{asked.get('organization') or OWNER}/{asked['name']}"
        self.require_writing(name)
        if name in self.state.repos:
            raise RefusalError(409, f"You already created this {kind} repo")
        if kind == "space" and "sdk" not in asked:
            raise RefusalError(400, "a space needs an sdk")
        self.state.repos[name] = Repo(asked.get("visibility") == "private")
        self.state.repos[name].commit("main", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, "initial")
        return lambda: self.answer(200, {"url": f"{self.own_url}/{name}", "name": name})

    def validate(self) -> Callable[[], None]:
        asked = json.loads(self.body)
        try:
            values = yaml.safe_load(asked["content"].split("---\n")[1])
            required = {"model": ["license"], "space": ["sdk"]}.get(asked["repoType"], [])
            wrong = [f"{name} must be a string" for name in required if not isinstance(values.get(name), str)]
        except yaml.YAMLError as error:
            wrong = [str(error)]
        if wrong:
            return lambda: self.answer(400, {"errors": [{"message": text} for text in wrong]})
        return lambda: self.answer(200, {"errors": [], "warnings": []})

    def info(self, repo: str, revision: str = "main") -> Callable[[], None]:
        found, oid = self.at(repo, revision)
        files = [{"rfilename": name} for name in found.commits[oid]]
        return lambda: self.answer(200, {"id": repo, "sha": oid, "private": found.private, "siblings": files})

    def tree(self, repo: str, revision: str) -> Callable[[], None]:
        found, oid = self.at(repo, revision)
        entries: list[dict[str, Any]] = []
        for name, file in found.commits[oid].items():
            lfs = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
            entry = {"type": "file", "path": name, "size": len(file.content), "oid": file.git_oid}
            entries.append({**entry, "lfs": lfs} if file.is_large else entry)
        return lambda: self.answer(200, entries)

    def branch(self, repo: str, branch: str) -> Callable[[], None]:
        self.require_writing(repo)
        found = self.repo(repo)
        if branch in found.refs:
            raise RefusalError(409, "Reference already exists")
        found.refs[branch] = found.refs["main"]
        return lambda: self.answer(201, {"ref": branch})

    def preupload(self, repo: str, revision: str) -> Callable[[], None]:
        if "create_pr" not in self.query:
            self.require_writing(repo)
        found, oid = self.at(repo, revision)
        files = []
        for asked in json.loads(self.body)["files"]:
            is_large = asked["size"] > LARGE or asked["path"].endswith(".safetensors")
            held = found.commits[oid].get(asked["path"])
            known = None if held is None else (held.sha256 if held.is_large else held.git_oid)
            mode = "lfs" if is_large else "regular"
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known})
        return lambda: self.answer(200, {"files": files})

    def batch(self, repo: str) -> Callable[[], None]:
        self.require_login()
        self.repo(repo)
        objects = [self._object(repo, asked) for asked in json.loads(self.body)["objects"]]
        return lambda: self.answer(200, {"transfer": "basic", "objects": objects})

    def _object(self, repo: str, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in self.state.storage:
            return asked
        store = f"{self.storage_url}/store/{asked['oid']}"
        verify = {"href": f"{self.own_url}/{repo}.git/info/lfs/objects/verify"}
        upload: dict[str, Any] = {"href": store}
        size = self.state.part_size
        if size is not None and asked["size"] > size:
            parts = {str(n + 1): f"{store}/{n + 1}" for n in range(-(-asked["size"] // size))}
            upload = {"href": f"{self.own_url}/complete/{asked['oid']}", "header": {"chunk_size": str(size), **parts}}
        return {**asked, "actions": {"upload": upload, "verify": verify}}

    def complete(self, sha: str) -> Callable[[], None]:
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        content = b"".join(self.state.parts.pop((sha, number)) for number in numbers)
        if hashlib.sha256(content).hexdigest() != sha:
            raise RefusalError(400, "the parts are not the file")
        self.state.storage[sha] = content
        return lambda: self.answer(200, {})

    def verify(self, repo: str) -> Callable[[], None]:
        asked = json.loads(self.body)
        if len(self.state.storage.get(asked["oid"], b"")) != asked["size"]:
            raise RefusalError(404, "not uploaded")
        return lambda: self.answer(200, {})

    def commit(self, repo: str, revision: str) -> Callable[[], None]:
        proposes = "create_pr" in self.query
        self.require_login() if proposes else self.require_writing(repo)
        found, oid = self.at(repo, revision)
        tree, message = dict(found.commits[oid]), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit", oid) != oid:
                    raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
            elif entry["key"] == "file":
                tree[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.state.storage:
                    raise RefusalError(400, f"{value['path']} was not uploaded")
                tree[value["path"]] = File(self.state.storage[value["oid"]], True)
            else:
                assert entry["key"] == "deletedFile", entry["key"]
                del tree[value["path"]]
        number = 1 + sum(name.startswith("refs/pr/") for name in found.refs)
        made = found.commit(f"refs/pr/{number}" if proposes else revision, tree, message)
        url = f"{self.own_url}/{repo}"
        proposed = f"{url}/discussions/{number}" if proposes else None
        answer = {"success": True, "commitOid": made, "commitUrl": f"{url}/commit/{made}", "pullRequestUrl": proposed}
        return lambda: self.answer(200, answer)

    def resolve(self, repo: str, revision: str, name: str) -> Callable[[], None]:
        found, oid = self.at(repo, revision)
        if name not in found.commits[oid]:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        file = found.commits[oid][name]
        headers = {"X-Repo-Commit": oid}
        if not file.is_large:
            return lambda: self.send_file(file.content, {**headers, "ETag": f'"{file.git_oid}"'})
        headers["Location"] = f"{self.storage_url}/store/{file.sha256}"
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        return lambda: self.answer(302, None, headers)


class StandIn:
    """A running hub."""

    def __init__(self, url: str, state: State) -> None:
        self.url, self.state = url, state

    def fails(self, method: str, words: str, does: int | str, times: int = 10**6, **headers: str) -> None:
        self.state.faults.append(Fault(method, words, does, times, headers))

    def heals(self) -> None:
        self.state.faults.clear()

    def names(self, repo: str, revision: str = "main") -> set[str]:
        return set(self.state.repos[repo].tree(revision)) - {".gitattributes"}


@contextmanager
def running() -> Iterator[StandIn]:
    state = State()
    storage = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnStorage", (Storage,), {"state": state}))
    place = f"http://127.0.0.1:{storage.server_port}"
    hub = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHub", (Hub,), {"state": state, "storage_url": place}))
    for server in (storage, hub):
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield StandIn(f"http://127.0.0.1:{hub.server_port}", state)
    finally:
        for server in (storage, hub):
            server.shutdown()
            server.server_close()

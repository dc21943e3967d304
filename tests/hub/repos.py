"""What the stand-in hub keeps: repositories of commits, and large files by their content."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field

TOKEN = "hf_standInTokenThatNobodyMayEverSee"
READ_TOKEN = "hf_standInTokenThatMayOnlyRead"
OWNER = "ada"
LARGE = 10_000
"""Bytes from which a file is stored apart (or where its name says so); the real hub's are 10 MB."""


@dataclass(frozen=True)
class File:
    """Of a commit: its bytes, and whether they are stored apart."""

    content: bytes
    is_large: bool

    @property
    def git_oid(self) -> str:
        content = self.pointer if self.is_large else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()


Tree = dict[str, File]


@dataclass
class Repo:
    """Commits and what leads to them."""

    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, ref: str, tree: Tree, message: str) -> str:
        said = f"{len(self.commits)} {message}".encode()
        oid = hashlib.sha1(said + b"".join(tree[name].git_oid.encode() for name in sorted(tree))).hexdigest()
        self.commits[oid] = tree
        self.refs[ref] = oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)

    def tree(self, revision: str = "main") -> Tree:
        oid = self.resolve(revision)
        assert oid is not None
        return self.commits[oid]


@dataclass
class Fault:
    """What goes wrong: the next requests of a method whose path holds some words."""

    method: str
    words: str
    does: int | str
    """A status; or `cut` (the connection, in the middle), `short` (half the bytes, said to be all), `wrong` (bytes)."""
    times: int = 10**6
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class State:
    """All of the hub, shared by the threads of its servers."""

    repos: dict[str, Repo] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    """Requests that took a token to the storage, which is another host."""
    part_size: int | None = None
    """Bytes of the parts in which large files are to be sent; None: whole."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.words in path:
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, words: str) -> int:
        return sum(asked == method and words in path for asked, path in self.requests)

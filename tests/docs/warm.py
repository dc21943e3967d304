"""A process that has imported everything and forks for each command, so that a hundred of them need not import it each.

    python -m tests.docs.warm SOCKET TOWERS LOG

Each command runs in a fork of its own, with the words, directory, variables and streams of whoever asked (client.py),
changed as substitutions.py says. `mmsr-pt serve` and `explore` are answered when they are up,
and run on.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn
from urllib.request import urlopen

from tests.docs.substitutions import SERVICES, as_run, not_run

_START_SECONDS = 60
_MAINS = {"mmsr-pt": "mmsr_pt.cli", "deepspeed": "deepspeed.launcher.runner", "torchrun": "torch.distributed.run"}
"""Where the `main` of each program is."""
_IMPORTED = (
    *_MAINS.values(), "deepspeed", "fastapi", "finetune.run", "pretrain.run", "shards.build", "timm",
    "torch.utils.tensorboard", "transformers", "uvicorn",
)  # fmt: skip


def main() -> None:
    """Answers until it is killed."""
    place, towers, log = sys.argv[1:]
    for name in _IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        server.settimeout(2)
        parent = os.getppid()
        while True:
            try:
                asked, _ = server.accept()
            except TimeoutError:
                if os.getppid() != parent:  # the tests are gone, however they ended: so are its services
                    os.killpg(0, signal.SIGKILL)
                continue
            asked.setblocking(True)
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                _answer(asked, towers, Path(log))
            asked.close()


def _answer(asked: socket.socket, towers: str, log: Path) -> NoReturn:
    head, streams, _, _ = socket.recv_fds(asked, 8, 3)
    size, content = int.from_bytes(head, "big"), b""
    while len(content) < size:
        content += asked.recv(2**16)
    request = json.loads(content)
    port = int(request["env"]["DOCS_PORT"])
    words = request["words"]
    is_run = not_run(words) is None
    if is_run:
        words = as_run(words, towers, port, _free_port())
    with log.open("a") as file:
        file.write(("" if is_run else "not run: ") + " ".join(words) + "\n")
    code = 0
    if is_run:
        ready = SERVICES.get(words[1]) if words[0] == "mmsr-pt" else None
        if ready is not None:  # it must not keep the pipe open that the block's output is read from
            for stream in streams:
                os.close(stream)
            streams = [os.open(log.with_name("services"), os.O_RDWR | os.O_CREAT | os.O_APPEND) for _ in streams]
        child = os.fork()
        if child == 0:
            _run(words, request["cwd"], request["env"], streams)
        if ready is not None:
            code = _wait_for_service(child, f"http://127.0.0.1:{words[-1]}{ready}")
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    asked.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


def _wait_for_service(child: int, address: str) -> int:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) or 1
        try:
            with urlopen(address) as answer:
                return 0 if answer.status == 200 else 1
        except OSError:
            time.sleep(0.1)
    return 1


def _run(words: list[str], cwd: str, env: dict[str, str], streams: list[int]) -> NoReturn:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    beside = os.environ["PATH"]  # compilers and what else the programs call
    os.environ.clear()
    os.environ.update(env, PATH=f"{env['PATH']}:{beside}")
    code = 1
    try:
        _call(words)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _call(words: list[str]) -> None:
    program, *args = words
    if program == "python" and args[0] == "-c":
        sys.argv = args
        exec(compile(args[1], "-c", "exec"), {"__name__": "__main__"})
    elif program == "python" and args[0] == "-m":
        sys.argv = args[1:]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    elif program == "python":
        sys.argv = args
        runpy.run_path(args[0], run_name="__main__")
    else:
        sys.argv = words
        importlib.import_module(_MAINS[program]).main()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()

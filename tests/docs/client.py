"""Asks the warm process (warm.py) for one command and leaves with its exit code: what `python`, `mmsr-pt` ... are in a
tested block. Needs nothing beyond the standard library, so that it starts in a few hundredths of a second."""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["DOCS_SOCKET"])
    request = {"words": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}  # noqa: PTH109 (quick to start)
    # the reader is told the length first, as a script behind -c may be long
    content = json.dumps(request).encode()
    socket.send_fds(server, [len(content).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(content)
    answer = server.recv(16)
sys.exit(int(answer or b"1"))

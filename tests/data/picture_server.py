"""A server of pictures on this machine that misbehaves in a way of its own for each path."""

import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def picture(kind: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind)
    return encoded.getvalue()


PICTURE = picture()


class PictureServer(ThreadingHTTPServer):
    """Notes who asks when, and how many at a time."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, float]] = []
        """Path and time of each request."""
        self.most_at_once = 0
        self.pause = 0.0
        """Seconds before every answer."""
        self.only_first = 10**9
        """Requests that get an answer before the server goes silent."""
        self.bytes_sent = 0
        self.released = threading.Event()
        self.at_once = 0
        self.lock = threading.Lock()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def times(self, path: str) -> int:
        return Counter(path for path, _ in self.asked)[path]

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are what these tests are about


class _Handler(BaseHTTPRequestHandler):
    server: PictureServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, server = self.path.strip("/"), self.server
        with server.lock:
            server.asked.append((path, time.monotonic()))
            number, turn = len(server.asked), server.times(path)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        if number > server.only_first:
            server.released.wait(30)
        time.sleep(server.pause)
        with server.lock:
            server.at_once -= 1  # before the answer: who has it may ask again at once
        _ANSWERS.get(path.split("/")[0], _picture)(self, turn)

    def answer(self, status: int, body: bytes = b"", kind: str = "image/jpeg", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.server.bytes_sent += len(body)

    def log_message(self, *_: object) -> None:
        pass


def _picture(handler: _Handler, turn: int) -> None:
    handler.answer(200, PICTURE)


def _first(bad: Callable[[_Handler], None], times: int = 1) -> Callable[[_Handler, int], None]:
    """Misbehaves so many times, then serves the picture."""
    return lambda handler, turn: bad(handler) if turn <= times else _picture(handler, turn)


def _cut(handler: _Handler) -> None:
    handler.answer(200, PICTURE[:500], Content_Length=str(len(PICTURE)))
    handler.close_connection = True


def _too_much(handler: _Handler) -> None:
    handler.answer(200, PICTURE, Content_Length=str(len(PICTURE) - 100))
    handler.close_connection = True


def _endless(handler: _Handler, turn: int) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 1000)
        handler.server.bytes_sent += 1000


def _drip(handler: _Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(PICTURE)))
    handler.end_headers()
    for byte in PICTURE:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def _redirect(target: str) -> Callable[[_Handler, int], None]:
    return lambda handler, turn: handler.answer(302, Location=target)


_ANSWERS: dict[str, Callable[[_Handler, int], None]] = {
    "missing": lambda handler, turn: handler.answer(404, b"no", "text/plain"),
    "gone": lambda handler, turn: handler.answer(410),
    "forbidden": lambda handler, turn: handler.answer(403),
    "busy": _first(lambda handler: handler.answer(429, Retry_After="2")),
    "busy_until": _first(lambda handler: handler.answer(503, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT")),
    "busy_for_a_day": _first(lambda handler: handler.answer(429, Retry_After="86400")),
    "failing_twice": _first(lambda handler: handler.answer(500), 2),
    "failing": lambda handler, turn: handler.answer(500),
    "cut_once": _first(_cut),
    "cut": lambda handler, turn: _cut(handler),
    "too_much": lambda handler, turn: _too_much(handler),
    "html": lambda handler, turn: handler.answer(200, b"<html>" + b"x" * 300, "text/html"),
    "half": lambda handler, turn: handler.answer(200, PICTURE[: len(PICTURE) // 2]),
    "endless": _endless,
    "huge": lambda handler, turn: handler.answer(200, b"", Content_Length="999999999"),
    "slow_once": _first(lambda handler: time.sleep(1.5)),
    "drip_once": _first(_drip),
    "moved": _redirect("/png"),
    "to_a_file": _redirect("file:///etc/hostname"),
    "to_nowhere": _redirect("http://[::1"),
    "in_circles": _redirect("/in_circles"),
    "png": lambda handler, turn: handler.answer(200, picture("PNG"), "text/plain"),
    "webp": lambda handler, turn: handler.answer(200, picture("WEBP")),
    "gif": lambda handler, turn: handler.answer(200, picture("GIF")),
    "bmp": lambda handler, turn: handler.answer(200, picture("BMP")),
    "dot": lambda handler, turn: handler.answer(200, picture("GIF", (1, 1))),
    "wide": lambda handler, turn: handler.answer(200, picture("JPEG", (300, 100))),
}


@contextmanager
def serving() -> Iterator[PictureServer]:
    server = PictureServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()

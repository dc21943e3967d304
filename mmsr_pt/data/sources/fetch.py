"""One picture from the web: asked for politely, tried again where that can help, and checked before it counts."""

from __future__ import annotations

import email.utils
import io
import threading
import time
from dataclasses import dataclass

import httpx2
from PIL import Image

from mmsr_pt.data.sources.hosts import Hosts, Limits, Refused, Stopped

_GONE = (404, 410)
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".png"}
"""Of the file of a picture, by Pillow's name of its format; a GIF becomes a PNG."""
_LEAST_SIDE = 16  # pixels: shops answer with a single dot where they have no picture


@dataclass(frozen=True)
class Fetcher:
    """Fetches pictures; one for all threads."""

    client: httpx2.Client
    """Follows no redirects by itself."""
    hosts: Hosts
    limits: Limits
    stopped: threading.Event

    def fetch(self, url: str) -> tuple[bytes, str]:
        """The picture's bytes and the suffix of its file.

        Raises:
            Refused: it cannot be had, in spite of all tries.
            Stopped: the download ends.
        """
        tries = 1
        while True:
            try:
                data, content_type = self._follow(url)
                return check_picture(data, content_type, self.limits)
            except Refused as refused:
                if not refused.again or tries == self.limits.tries:
                    raise
                pause = max(refused.wait, self.limits.first_wait * 2 ** (tries - 1))
            tries += 1
            if self.stopped.wait(min(pause, self.limits.longest_wait)):
                raise Stopped

    def _follow(self, url: str) -> tuple[bytes, str]:
        """The body behind at most so many redirects, and its Content-Type."""
        address = _web_address(url)
        for _ in range(self.limits.max_redirects + 1):
            host = address.netloc.decode()
            self.hosts.wait(host)
            try:
                with self.client.stream("GET", address) as response:
                    self.hosts.note(host, answered=True)
                    if not response.has_redirect_location:
                        self._check_status(response, host)
                        return self._body(response), response.headers.get("content-type", "")
                    address = _web_address(response.headers["location"], address)
            except httpx2.TransportError as error:
                self.hosts.note(host, answered=False)
                raise Refused(_words(error), again=True) from error
            except (Refused, Stopped):
                raise
            except Exception as error:  # an odd address, a port of 99999 say, must not end the download of all others
                raise Refused(_words(error)) from error
        raise Refused(f"more than {self.limits.max_redirects} redirects")

    def _check_status(self, response: httpx2.Response, host: str) -> None:
        if response.status_code == 200:
            return
        reason = f"HTTP {response.status_code} {response.reason_phrase}".strip()
        wait = min(_seconds_asked_for(response.headers.get("retry-after", "")), self.limits.longest_wait)
        if wait:
            self.hosts.hold(host, wait)
        raise Refused(reason, response.status_code in _TRY_AGAIN, response.status_code in _GONE, wait)

    def _body(self, response: httpx2.Response) -> bytes:
        """The bytes as sent, no more than allowed, and as many as announced."""
        deadline = time.monotonic() + self.limits.longest_request
        too_large = Refused(f"larger than {self.limits.max_bytes:,} bytes")
        told = response.headers.get("content-length", "")
        if told.isdecimal() and int(told) > self.limits.max_bytes:
            raise too_large
        data = bytearray()
        for part in response.iter_raw():
            data += part
            if self.stopped.is_set():
                raise Stopped
            if len(data) > self.limits.max_bytes:
                raise too_large
            if time.monotonic() > deadline:
                raise Refused(f"not complete after {self.limits.longest_request:g} s", again=True)
        if told.isdecimal() and int(told) != len(data):
            raise Refused(f"{len(data):,} bytes came of the {int(told):,} announced", again=True)
        return bytes(data)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _web_address(url: str, base: httpx2.URL | None = None) -> httpx2.URL:
    """A checked address: files and the like are not read, wherever a redirect leads."""
    try:
        address = httpx2.URL(url) if base is None else base.join(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise Refused(f"{url!r} is no address: {error}") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise Refused(f"{url!r} is no address of http or https")
    return address


def _seconds_asked_for(retry_after: str) -> float:
    """The header Retry-After: a number of seconds or a date; 0 where it is neither."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max(0.0, date.timestamp() - time.time())


def check_picture(data: bytes, content_type: str, limits: Limits) -> tuple[bytes, str]:
    """The bytes of a picture's file and its suffix.

    Raises:
        Refused: the bytes cannot be decoded as a picture of a format that is asked for, or of a size that is allowed.
    """
    try:
        with Image.open(io.BytesIO(data), formats=list(_SUFFIXES)) as picture:
            width, height = picture.size
            if width * height <= limits.max_pixels and min(picture.size) >= _LEAST_SIDE:
                picture.load()  # fails where the end is missing
                if picture.format == "GIF":
                    return _as_png(picture), _SUFFIXES["GIF"]
                return data, _SUFFIXES[str(picture.format)]
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise Refused(f"{len(data):,} bytes of {content_type or 'no type'} are no picture: {error}") from error
    raise Refused(f"{width} x {height} pixels: at least {_LEAST_SIDE} a side, {limits.max_pixels:,} in all are taken")


def _as_png(picture: Image.Image) -> bytes:
    encoded = io.BytesIO()
    picture.convert("RGBA").save(encoded, "PNG")
    return encoded.getvalue()

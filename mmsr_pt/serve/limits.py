"""Refuses bodies that are too large before they are read."""

from __future__ import annotations

import contextlib

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class TooLargeError(Exception):
    """The body went beyond the limit."""


class BodyLimit:
    """ASGI middleware: 413 for a body that says or turns out to be larger than allowed."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise TooLargeError
            return message

        async def unless_too_large(message: Message) -> None:
            # what the application makes of the error is not what the client is told
            if received <= self._max_bytes:
                await send(message)

        with contextlib.suppress(TooLargeError):
            await self._app(scope, limited, unless_too_large)
        if received > self._max_bytes:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = JSONResponse({"detail": f"the body is larger than {self._max_bytes:,} bytes"}, 413)
        await answer(scope, receive, send)

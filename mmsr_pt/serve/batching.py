"""Requests that arrive together are answered together: one pass of the model for all of them.

Nothing waits for company: while the model works, requests gather, and the next pass takes all that are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

QuestionT = TypeVar("QuestionT")
AnswerT = TypeVar("AnswerT")


class BusyError(Exception):
    """More requests wait than are let in."""


class Batcher(Generic[QuestionT, AnswerT]):
    """Passes questions on to a function of many, one call at a time, in a thread of its own."""

    def __init__(
        self, answer: Callable[[Sequence[QuestionT]], Sequence[AnswerT]], max_batch: int, max_waiting: int
    ) -> None:
        """Starts nothing yet.

        Args:
            answer: from questions to as many answers, in their order; it must not fail for one question's fault.
            max_batch: questions of one call.
            max_waiting: questions that may wait.
        """
        self._answer, self._max_batch, self._max_waiting = answer, max_batch, max_waiting
        self._waiting: list[tuple[QuestionT, asyncio.Future[AnswerT]]] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: QuestionT) -> AnswerT:
        """The answer to a question; raises BusyError where too many wait."""
        if len(self._waiting) >= self._max_waiting:
            raise BusyError
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        self._arrived.set()
        return await future

    def start(self) -> None:
        """Begins to answer; call within the event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stops; what waits gets no answer."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for _, future in self._waiting:
            future.cancel()
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            if not self._waiting:
                self._arrived.clear()
            # whoever has gone away meanwhile needs no answer
            batch = [(question, future) for question, future in batch if not future.done()]
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(self._thread, self._answer, [question for question, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers):
                if not future.done():
                    future.set_result(answer)

"""The service: /recommend, /similar, /healthz, and its description in /openapi.json.

    mmsr-pt serve --model runs/mine --index mine-index --port 8000
    curl -s localhost:8000/recommend -H 'content-type: application/json' -d '{"history": [{"id": "7"}], "top_k": 5}'

Titles and pictures are read by threads while the model works; the model itself answers all that wait in one pass.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from mmsr_pt.catalogue_index import CatalogueIndex
from mmsr_pt.data.raw_items import IMAGE, with_content
from mmsr_pt.histories import HistoryItem, seen_rows
from mmsr_pt.log import UserError
from mmsr_pt.model import MMSRModel
from mmsr_pt.recommend import Recommendation
from mmsr_pt.serve.batching import Batcher, BusyError
from mmsr_pt.serve.limits import BodyLimit
from mmsr_pt.serve.messages import Answer, Health, Item, RecommendRequest, ScoredItem, SimilarRequest


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int = 16_000_000
    image_pixels: int = 50_000_000
    """Width times height of a picture, which its header tells before anything is decoded."""
    batch: int = 64
    """Requests of one pass of the model."""
    waiting: int = 1_024
    """Requests that may wait; further ones are told to come again (503)."""


Question = tuple[list[HistoryItem], int]


def create_app(model: MMSRModel, index: CatalogueIndex, limits: Limits | None = None) -> FastAPI:
    """The service of a model and a catalogue.

    Args:
        model: on the device where it is to work.
        index: made by this model.
        limits: of one request.
    """
    limits = limits or Limits()

    def recommend(questions: Sequence[Question]) -> list[list[Recommendation]]:
        longest = max(top_k for _, top_k in questions)
        found = model.recommend_batch([history for history, _ in questions], index, longest)
        return [of_one[:top_k] for of_one, (_, top_k) in zip(found, questions)]

    def similar(questions: Sequence[tuple[HistoryItem, int]]) -> list[list[Recommendation]]:
        return [model.similar(item, index, top_k) for item, top_k in questions]

    batchers = Batcher(recommend, limits.batch, limits.waiting), Batcher(similar, limits.batch, limits.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for batcher in batchers:
            batcher.start()
        yield
        for batcher in batchers:
            await batcher.stop()

    app = FastAPI(title="mmsr_pt", description="Recommendations by titles and pictures.", lifespan=lifespan)
    app.add_middleware(BodyLimit, max_bytes=limits.body_bytes)
    app.add_exception_handler(UserError, _refused)
    app.add_exception_handler(BusyError, _busy)
    app.add_exception_handler(RequestValidationError, _malformed)
    read = _reader(model, index, limits)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether it answers, and by what."""
        search = "exact" if index.approximate is None else "faiss"
        return Health(status="ok", model=model.fingerprint, items=len(index), search=search)

    @app.post("/recommend")
    async def recommend_endpoint(request: RecommendRequest) -> Answer:
        """The items that rank highest behind a history, those of the history left out."""
        history = await run_in_threadpool(read, request.history)
        return _answer(await batchers[0].ask((history, request.top_k)))

    @app.post("/similar")
    async def similar_endpoint(request: SimilarRequest) -> Answer:
        """The items that are most like one."""
        (item,) = await run_in_threadpool(read, [request.item])
        return _answer(await batchers[1].ask((item, request.top_k)))

    return app


def _reader(model: MMSRModel, index: CatalogueIndex, limits: Limits) -> Callable[[Sequence[Item]], list[HistoryItem]]:
    """What makes items of a request fit for the model, so that one request's mistake fails no other of its pass."""

    def read(items: Sequence[Item]) -> list[HistoryItem]:
        history: list[HistoryItem] = []
        for place, item in enumerate(items):
            given = item.as_history_item()
            if not isinstance(given, str):
                if model.recommender.config.learns_items:
                    raise UserError("this model knows no item by its content: name items by their ids")
                if IMAGE in given:
                    _require_pixels(given[IMAGE], limits.image_pixels)
                given = with_content(given, place, model.preprocessor)
            history.append(given)
        seen_rows(history, index, 0)
        return history

    return read


def _require_pixels(data: bytes, most: int) -> None:
    """Refuses a picture by its header, before anything is decoded; what is no picture is refused later."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            pixels = picture.width * picture.height
    except Image.DecompressionBombError as error:
        raise UserError(f"an image has more than {most:,} pixels: send a smaller one") from error
    except Exception:
        return
    if pixels > most:
        raise UserError(f"an image has {pixels:,} pixels, {most:,} are allowed: send a smaller one")


def _answer(found: Sequence[Recommendation]) -> Answer:
    return Answer(
        items=[ScoredItem(rank=item.rank, id=item.item_id, title=item.title, score=item.score) for item in found]
    )


async def _refused(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)


async def _malformed(_: Request, error: Exception) -> JSONResponse:
    """Where and why, without the input, which may be large or no JSON when written again."""
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": [{"loc": list(e["loc"]), "msg": e["msg"]} for e in error.errors()]}, 422)


async def _busy(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "too many requests are waiting: come again"}, 503, {"retry-after": "1"})

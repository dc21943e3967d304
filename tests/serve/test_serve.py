"""The service over real HTTP: what it answers, what it refuses, and many requests at once."""

import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import torch
import uvicorn
from PIL import Image

from mmsr_pt.assembly import build_model
from mmsr_pt.flags import parse_flags
from mmsr_pt.model import MMSRModel
from mmsr_pt.serve.app import Limits, create_app

LIMITS = Limits(body_bytes=300_000, image_pixels=250_000, batch=8)


def built(domain, *flags) -> MMSRModel:
    torch.manual_seed(0)
    config = parse_flags(["--data", str(domain.path), "--width", "16", "--max_history", "4", *flags])
    recommender, preprocessor = build_model(config.model, [domain])
    recommender.trained_on = [{"name": domain.name, "fingerprint": domain.fingerprint}]
    return MMSRModel(recommender, preprocessor)


@pytest.fixture(scope="module")
def model(small_domain):
    return built(small_domain)


@pytest.fixture(scope="module")
def index(model, small_domain):
    return model.index(small_domain)


def serving(app):
    """Runs an app on a free port of loopback; yields a client."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def client(model, index):
    yield from serving(create_app(model, index, LIMITS))


def content(domain, row, **changes):
    """An item as a request holds it."""
    image = base64.b64encode(domain.read_image(row)).decode()
    return {"title": domain.items["title"][row], "image": image, **changes}


def as_answer(found):
    return [
        {"rank": i.rank, "id": i.item_id, "title": i.title, "score": pytest.approx(i.score, abs=1e-4)} for i in found
    ]


def test_it_says_what_it_serves(client, model):
    assert client.get("/healthz").json() == {
        "status": "ok",
        "model": model.fingerprint,
        "items": 300,
        "search": "exact",
    }
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/healthz", "/recommend", "/similar"}


def test_recommendations_are_the_models(client, model, index, small_domain):
    ids = small_domain.items["item_id"][[3, 70, 5, 8, 9, 10]].to_list()
    told = client.post("/recommend", json={"history": [{"id": item_id} for item_id in ids], "top_k": 4})
    assert told.status_code == 200
    assert told.json()["items"] == as_answer(model.recommend(ids, index, top_k=4))
    raw = [content(small_domain, 3), content(small_domain, 70, id=ids[1])]
    history = [{"title": item["title"], "image": base64.b64decode(item["image"])} for item in raw]
    history[1]["id"] = ids[1]
    told = client.post("/recommend", json={"history": raw})
    assert told.json()["items"] == as_answer(model.recommend(history, index))


def test_similar_items_are_the_models(client, model, index, small_domain):
    item_id = small_domain.items["item_id"][12]
    told = client.post("/similar", json={"item": {"id": item_id}, "top_k": 3})
    assert told.json()["items"] == as_answer(model.similar(item_id, index, top_k=3))


def test_many_at_once_get_the_answers_that_each_gets_alone(client, model, index, small_domain):
    """Passes of several requests, some of which are refused: nobody's mistake is anybody else's."""
    ids = small_domain.items["item_id"].to_list()
    asked = [([ids[i], ids[(7 * i + 1) % 300]], 1 + i % 9) for i in range(120)]
    passes = []
    whole = model.recommend_batch

    def counted(histories, *rest):
        passes.append(len(histories))
        return whole(histories, *rest)

    def ask(number):
        history, top_k = asked[number]
        items = [{"id": item_id} for item_id in history]
        if number % 5 == 4:
            items.append({"id": "no such item"} if number % 2 else {"title": "x", "image": "aGVsbG8="})
        return client.post("/recommend", json={"history": items, "top_k": top_k})

    model.recommend_batch = counted
    try:
        with ThreadPoolExecutor(24) as pool:
            told = list(pool.map(ask, range(120)))
    finally:
        del model.recommend_batch
    for number, (response, (history, top_k)) in enumerate(zip(told, asked)):
        if number % 5 == 4:
            assert response.status_code == 422
        else:
            assert response.json()["items"] == as_answer(whole([history], index, top_k)[0])
    assert sum(passes) == 96
    assert max(passes) > 1, "some were answered together"
    assert max(passes) <= LIMITS.batch


def png(width, height):
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"history": []}, "at least 1 item"),
        ({"history": [{}]}, "an item needs an id"),
        ({"history": [{"id": "nowhere"}]}, "unknown item 'nowhere'"),
        ({"history": [{"id": "0", "price": 3}]}, "Extra inputs are not permitted"),
        ({"history": [{"title": "hat"}]}, "has no image, which the model reads"),
        ({"history": [{"image": "aGVsbG8="}]}, "has no title, which the model reads"),
        ({"history": [{"title": "hat", "image": "%%%"}]}, "is not base64"),
        ({"history": [{"title": "hat", "image": "aGVsbG8="}]}, "cannot be read"),
        ({"history": [{"title": "hat", "image": png(600, 600)}]}, "360,000 pixels, 250,000 are allowed"),
        ({"history": [{"title": "hat", "image": png(20_000, 10_000)}]}, "pixels"),
        ({"history": [{"title": "x" * 2001, "image": png(5, 5)}]}, "at most 2000 characters"),
        ({"history": [{"id": "0"}], "top_k": 0}, "greater than or equal to 1"),
        ({"history": [{"id": "0"}], "top_k": 10**9}, "less than or equal to 1000"),
        ({"history": [{"id": "0"}] * 1001}, "at most 1000 items"),
        ({"history": "0"}, "valid list"),
        ({}, "Field required"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(client, body, sentence):
    response = client.post("/recommend", json=body)
    assert response.status_code == 422
    assert sentence in response.text
    assert "Traceback" not in response.text
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"history": NaN}'])
def test_what_is_no_json_is_refused(client, body):
    response = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_beyond_the_limit_is_refused(client, announced):
    body = b'{"history": [{"id": "' + b"x" * LIMITS.body_bytes + b'"}]}'
    chunks = (body[start : start + 50_000] for start in range(0, len(body), 50_000))
    response = client.post("/recommend", content=body if announced else chunks)
    assert response.status_code == 413
    assert "larger than 300,000 bytes" in response.text


def test_who_comes_when_too_many_wait_is_told_to_come_again(model, index, small_domain):
    item = {"id": small_domain.items["item_id"][0]}
    go, whole = threading.Event(), model.recommend_batch
    model.recommend_batch = lambda *asked: go.wait(60) and whole(*asked)
    try:
        with_few = create_app(model, index, Limits(batch=1, waiting=2))
        for client in serving(with_few):
            with ThreadPoolExecutor(12) as pool:
                asked = [pool.submit(client.post, "/recommend", json={"history": [item]}) for _ in range(12)]
                deadline = time.monotonic() + 60
                while sum(one.done() for one in asked) < 9 and time.monotonic() < deadline:
                    time.sleep(0.01)
                go.set()
                codes = sorted(one.result().status_code for one in asked)
    finally:
        del model.recommend_batch
    # one is being answered and two wait
    assert codes == [200] * 3 + [503] * 9


def test_an_id_model_is_asked_by_ids(small_domain):
    model = built(small_domain, "--item", "id")
    item_id = small_domain.items["item_id"][0]
    for client in serving(create_app(model, model.index(small_domain))):
        assert client.post("/recommend", json={"history": [{"id": item_id}]}).status_code == 200
        refused = client.post("/recommend", json={"history": [content(small_domain, 0)]})
        assert refused.status_code == 422
        assert "knows no item by its content" in refused.text


def test_the_command_serves_an_index_until_it_is_told_to_stop(model, index, small_domain, tmp_path):
    model.save_pretrained(tmp_path / "bundle")
    index.save(tmp_path / "index")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["serve", "--model", tmp_path / "bundle", "--index", tmp_path / "index", "--port", port]
    command = [sys.executable, "-m", "mmsr_pt.cli", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(r"300 items by .* at http://127.0.0.1:", line):
                break
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                assert httpx2.get(f"http://127.0.0.1:{port}/healthz").json()["items"] == 300
                break
            except httpx2.ConnectError:
                time.sleep(0.05)
        else:
            pytest.fail("it never answered")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)
    finally:
        process.kill()
        process.wait()

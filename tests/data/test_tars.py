"""The tars of a domain: plain WebDataset, and just what items.parquet and domain.json say of them."""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import webdataset as wds

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.shards import sizes
from mmsr_pt.data.shards.build import BuildOptions
from mmsr_pt.data.shards.sizes import tar_bytes, users_by_tar
from mmsr_pt.data.shards.tars import header
from tests.data.raw import Interaction, build_table, write_table
from tests.data.tars import members, trained_events


@pytest.mark.parametrize("kind", ["items", "train"])
def test_plain_webdataset_reads_every_tar_in_one_pass(small_domain: Domain, kind: str) -> None:
    """Through a pipe, so that nothing can seek: each item once a tar, right before the first user that needs it."""
    paths = sorted((small_domain.path / kind).iterdir())
    titles = small_domain.titles()
    users: list[int] = []
    rows: list[int] = []
    for path in paths:
        here: set[int] = set()
        unused: set[int] = set()
        for sample in wds.WebDataset([f"pipe:cat {path}"], shardshuffle=False, empty_check=False):
            value = json.loads(sample["json"])
            if "jpg" in sample:
                assert sample["__key__"] == f"i{value['row']:08d}"
                assert value["title"] == titles[value["row"]]
                assert sample["jpg"].startswith(b"\xff\xd8")
                assert value["row"] not in here
                here.add(value["row"])
                unused.add(value["row"])
            else:
                assert sample["__key__"] == f"u{value['user']:08d}"
                assert set(value["items"]) <= here
                assert unused <= set(value["items"])
                assert len(value["items"]) == len(value["times"])
                unused = set()
                users.append(value["user"])
        rows.extend(here)
        assert kind == "items" or not unused
    if kind == "items":
        assert rows == list(range(small_domain.num_items))
    else:
        assert sorted(users) == list(range(small_domain.num_users))


def test_parquet_offsets_point_at_the_bytes_of_each_picture(small_domain: Domain) -> None:
    content = {p.name: dict(members(p)) for p in (small_domain.path / "items").iterdir()}
    assert small_domain.items["row"].to_list() == list(range(small_domain.num_items))
    for item_id, row, title, tar, offset, size in small_domain.items.select(
        "item_id", "row", "title", "tar", "offset", "size"
    ).iter_rows():
        path = small_domain.path / tar
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        assert data == content[path.name][f"i{row:08d}.jpg"]
        assert data == small_domain.read_image(row)
        assert json.loads(content[path.name][f"i{row:08d}.json"]) == {"row": row, "id": item_id, "title": title}


def test_items_spread_over_several_tars_travel_whole_into_the_train_tars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsr_pt.data.shards.items._MAX_TAR_ITEMS", 7)
    rows: list[Interaction] = [(f"u{user}", f"{(user + i) % 20:02d}", i) for user in range(20) for i in range(6)]
    root = write_table(tmp_path / "raw", rows, {f"{i:02d}": f"title {i}" for i in range(20)})
    domain = build_table(root, tmp_path / "out", BuildOptions(num_workers=1, num_shards=3))
    tars = sorted((domain.path / "items").iterdir())
    assert [len(members(tar)) for tar in tars] == [14, 14, 12]  # a JSON and a JPEG of 7, 7 and 6 items
    catalogue = dict(member for tar in tars for member in members(tar))
    for row in range(20):
        assert domain.read_image(row) == catalogue[f"i{row:08d}.jpg"]
        assert json.loads(catalogue[f"i{row:08d}.json"])["id"] == f"{row:02d}"
    for tar in domain.train_tars:
        travelled = {name: data for name, data in members(tar.path) if name.startswith("i")}
        assert travelled.items() <= catalogue.items()


def test_the_manifest_counts_what_is_in_the_tars(small_domain: Domain) -> None:
    domain = small_domain
    listed = {tar["path"] for tar in domain.meta["tars"]}
    assert listed == {p.relative_to(domain.path).as_posix() for p in domain.path.rglob("*.tar")}
    for tar in domain.meta["tars"]:
        data = (domain.path / tar["path"]).read_bytes()
        names = [name for name, _ in members(domain.path / tar["path"])]
        items, users = (sum(name[0] == letter and name.endswith(".json") for name in names) for letter in "iu")
        assert tar["bytes"] == len(data)
        assert tar["sha256"] == hashlib.sha256(data).hexdigest()
        assert (tar["items"], tar["samples"]) == (items, users if tar["kind"] == "train" else items)
        assert (tar["kind"] == "train") == (users > 0)
    trained = trained_events(domain)
    num_events = sum(map(len, trained.values()))
    counts = domain.meta["counts"]
    assert counts["users"] == len(trained) == domain.num_users
    assert counts["train_interactions"] == num_events == domain.items["train_count"].sum()
    assert counts["interactions"] == num_events + 2 * len(trained)
    assert (
        counts["items"] == domain.items.height == sum(t["items"] for t in domain.meta["tars"] if t["kind"] == "items")
    )
    assert counts["items_in_training"] == len({item for events in trained.values() for item, _ in events})


@pytest.mark.parametrize("name", ["i00000001.json", "u12345678.json", "x" * 100])
@pytest.mark.parametrize("size", [0, 1, 512, 123_456_789, 8 * 2**30 - 1])
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    assert header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


# ---- how many train tars, and what that saves


def test_the_manifest_says_what_a_copy_for_every_occurrence_would_take(tmp_path: Path) -> None:
    """20 users with 4 training interactions each, all with the same 4 items."""
    rows: list[Interaction] = [(f"u{user:02d}", str(i), i) for user in range(20) for i in range(6)]
    root = write_table(tmp_path / "raw", rows, {str(i): "t" for i in range(6)})
    for num_tars in (1, 4):
        domain = build_table(root, tmp_path / str(num_tars), BuildOptions(num_workers=1, num_shards=num_tars))
        occurrence = user = 0
        item = {name[1:9]: 0 for tar in domain.train_tars for name, _ in members(tar.path) if name.endswith("jpg")}
        assert len(item) == 4
        for name, data in members(domain.train_tars[0].path):
            padded = 512 + -(-len(data) // 512) * 512
            if name.startswith("i"):
                item[name[1:9]] += padded
            else:
                user = padded
        occurrence = sum(item.values()) * 20
        counts = domain.meta["counts"]
        assert counts["train_bytes"] == sum(tar.path.stat().st_size for tar in domain.train_tars)
        assert counts["train_bytes"] == num_tars * (sum(item.values()) + 1024) + 20 * user
        assert counts["train_bytes_if_repeated"] == occurrence + 20 * user + 1024 * num_tars


def test_a_small_domain_is_one_tar_and_a_large_one_as_few_as_stay_below_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    histories = [rng.choice(50, 5, replace=False).tolist() for _ in range(100)]
    history, item_bytes = pl.Series(histories, dtype=pl.List(pl.UInt32)), rng.integers(1_000, 9_000, 50)
    assert len(users_by_tar(history, item_bytes, 0, seed=0)) == 1

    def expected(users: list[int]) -> int:
        occurring = {row for user in users for row in histories[user]}
        return sum(int(item_bytes[row]) for row in occurring) + 1024 * len(users) + 40 * 5 * len(users)

    for limit in (150_000, 100_000, 1):
        monkeypatch.setattr(sizes, "_TAR_BYTES", limit)
        tars = users_by_tar(history, item_bytes, 0, seed=0)
        assert sorted(np.concatenate(tars).tolist()) == list(range(100))
        assert max(map(len, tars)) - min(map(len, tars)) <= 1
        first = tars[0].tolist()
        assert tar_bytes(history, tars[0], item_bytes) == expected(first)
        assert expected(first) <= limit or len(tars) == 100
        half = np.array_split(np.concatenate(tars), max(len(tars) // 2, 1))[0].tolist()
        assert len(tars) == 100 or expected(half) > limit
    assert [len(tar) for tar in users_by_tar(history, item_bytes, 7, seed=0)] == [15, 15, 14, 14, 14, 14, 14]

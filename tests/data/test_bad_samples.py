"""Damaged shards through the real loader: what is broken is left out and named, all else stays where it was."""

import functools
import io
import itertools
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from mmsr_pt.batch import ImageSpec, UserBatch
from mmsr_pt.data.catalogue import iter_item_batches
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import MAX_PIXELS, Preprocessor
from mmsr_pt.data.unreadable import Unreadable
from mmsr_pt.log import UserError
from tests.data.broken import Member, copy_of, edit_tar, flip, member, picture, replace_member, tars_with
from tests.data.tars import members
from tests.data.test_stream import batches, by_user, make_order, steps

READS = Preprocessor(None, ImageSpec(16, 16, "bilinear", (0.5,) * 3, (0.5,) * 3))
TAR = "train/train-00003.tar"


def epoch(domain: Domain, **how: object) -> list[UserBatch]:
    return list(itertools.islice(batches([domain], **how), make_order([domain]).steps_per_epoch))  # type: ignore


@functools.cache
def epoch_of_whole(domain: Domain) -> list[UserBatch]:
    return epoch(domain, workers=2)


def users_of(root: Path, tar: str) -> list[str]:
    return [name for name, _ in members(root / tar) if name.startswith("u")]


def user_json(items: object, user: object, **more: object) -> bytes:
    return json.dumps({"user": user, "id": "x", "items": items, "times": [1, 2], **more}).encode()


USERS: dict[str, Callable[[int], bytes]] = {
    "nothing": lambda user: b"",
    "no JSON": lambda user: b'{"user": ',
    "no object": lambda user: b"[1, 2]",
    "invalid UTF-8": lambda user: user_json([1, 2], user).replace(b'"x"', b'"\xff\xfe"'),
    "NaN": lambda user: user_json([1, 2], user, times=[float("nan")]),
    "a NaN item": lambda user: user_json([1, float("nan")], user),
    "fractions": lambda user: user_json([1.5, 2.0], user),
    "booleans": lambda user: user_json([True, 2], user),
    "text": lambda user: user_json(["1", "2"], user),
    "no items": lambda user: user_json([], user),
    "nested items": lambda user: user_json([[1, 2]], user),
    "items that are no list": lambda user: user_json({"1": 2}, user),
    "an item too many": lambda user: user_json([1, 300], user),
    "a huge number": lambda user: user_json([1, 10**400], user),
    "more digits than Python reads": lambda user: user_json([1], user).replace(b"[1]", b"[" + b"9" * 10_000 + b"]"),
    "a negative item": lambda user: user_json([-1, 2], user),
    "somebody else": lambda user: user_json([1, 2], user + 1),
    "deep nesting": lambda user: b"[" * 200_000 + b"]" * 200_000,
    "a deep id": lambda user: user_json([1, 2], user).replace(b'"x"', b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a key twice": lambda user: b'{"user": %d, "items": [1, 2], "items": [3, 4]}' % user,
}


def test_users_who_cannot_be_read_leave_empty_slots(small_domain: Domain, tmp_path: Path) -> None:
    root = copy_of(small_domain, tmp_path / "domain", with_checksums=False)
    everyone = [(tar, key) for tar in train_tars(root) for key in users_of(root, tar)]
    broken = {}
    for (tar, key), fault in zip(everyone[::6], USERS):
        replace_member(root, tar, key, member(key, USERS[fault](int(key[1:-5]))))
        broken[tar, key[:9]] = fault
    assert len(broken) == len(USERS)
    check_missing_users(small_domain, root, broken)


def train_tars(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in sorted((root / "train").iterdir())]


def check_missing_users(whole: Domain, root: Path, broken: dict[tuple[str, str], str]) -> dict[str, str]:
    """All other users stand where they stood; returns why the broken ones could not be read, by their fault."""
    numbers = {int(key[1:]) for _, key in broken}
    reasons = {}
    for before, after in zip(epoch_of_whole(whole), epoch(Domain.load(root), workers=2), strict=True):
        assert after.users.tolist() == [-1 if user in numbers else user for user in before.users.tolist()]
        assert by_user(after) == {user: found for user, found in by_user(before).items() if user not in numbers}
        for bad in after.bad:
            assert bad.number == -1 - int(bad.key[1:])
            reasons[broken[str(Path(bad.shard).relative_to(root)), bad.key]] = bad.why
    assert reasons.keys() == set(broken.values())
    return reasons


def test_what_stands_in_an_id_does_no_harm(small_domain: Domain, tmp_path: Path) -> None:
    root = copy_of(small_domain, tmp_path / "domain", with_checksums=False)
    for key, text in zip(users_of(root, TAR), ("\x00\x1b[31m", "\ud800", "x" * 10**6, "")):
        items = dict(small_domain.eval.select("user", "history").iter_rows())[int(key[1:-5])]
        replace_member(root, TAR, key, member(key, user_json(items, int(key[1:-5]), id=text)))
    for before, after in zip(epoch_of_whole(small_domain), epoch(Domain.load(root)), strict=True):
        assert by_user(after) == by_user(before)
        assert not after.bad


def link(kind: bytes) -> Callable[[str, bytes], list[Member]]:
    return lambda name, data: [member(name, b"", kind, "../../../etc/passwd")]


MEMBERS: dict[str, tuple[Callable[[str, bytes], list[Member]], str]] = {
    "missing": (lambda name, data: [], "missing"),
    "twice": (lambda name, data: [member(name, data)] * 2, "twice"),
    "outside": (lambda name, data: [member(f"../../{name}", data)], "missing"),
    "absolute": (lambda name, data: [member(f"/tmp/{name}", data)], "missing"),
    "symbolic link": (link(tarfile.SYMTYPE), "missing"),
    "hard link": (link(tarfile.LNKTYPE), "missing"),
    "directory": (lambda name, data: [member(name, b"", tarfile.DIRTYPE)], "missing"),
    "device": (lambda name, data: [member(name, b"", tarfile.CHRTYPE)], "missing"),
    "another name": (lambda name, data: [member(name.upper(), data)], "missing"),
}


def test_members_that_are_not_as_they_should_be(small_domain: Domain, tmp_path: Path) -> None:
    """Nothing is unpacked, and no link is followed."""
    root = copy_of(small_domain, tmp_path / "domain", with_checksums=False)
    broken = {}
    for tar, fault in itertools.zip_longest(train_tars(root), MEMBERS, fillvalue=TAR):
        user, edit = users_of(root, tar)[5 if tar == TAR else 4], MEMBERS[fault][0]
        edit_tar(root, tar, lambda name, data: edit(name, data) if name == user else [member(name, data)])  # noqa: B023
        broken[tar, user[:9]] = fault
    before = sorted(tmp_path.rglob("*"))
    reasons = check_missing_users(small_domain, root, broken)
    assert sorted(tmp_path.rglob("*")) == before
    for fault, (_, why) in MEMBERS.items():
        assert why in reasons[fault]


def shown(data: bytes) -> torch.Tensor:
    return READS.decode_image(data).permute(2, 0, 1)


GOOD = picture()
PICTURES = {
    "0 bytes": b"",
    "cut off": GOOD[: len(GOOD) // 2],
    "no end": GOOD[:-200],
    "no picture": b"GIF89a" + bytes(100),
    "text": b"<html>not found</html>",
    "a header alone": GOOD[:20],
    "decompression bomb": picture("L", (MAX_PIXELS // 5_000 + 1, 5_000), "PNG"),
    "64 MB": GOOD + bytes(64 * 2**20),
}


def test_a_broken_picture_of_a_train_tar_is_taken_from_the_catalogue(small_domain: Domain, tmp_path: Path) -> None:
    root = copy_of(small_domain, tmp_path / "domain", with_checksums=False)
    broken = set()
    for tar, faults in zip(train_tars(root), np.array_split([*PICTURES, "missing", "twice"], 8)):
        content = dict(members(root / tar))
        for fault, name in zip(faults, [name for name in content if name.endswith(".jpg")]):
            new = {"missing": [], "twice": [member(name, content[name])] * 2}
            replace_member(root, tar, name, *new.get(fault, [member(name, PICTURES.get(fault, b""))]))
            broken.add((int(name[1:9]), str(root / tar), name[:9]))
    assert len(broken) == len(PICTURES) + 2
    named = set()
    for before, after in zip(epoch_of_whole(small_domain), epoch(Domain.load(root), workers=2), strict=True):
        assert torch.equal(after.users, before.users)
        assert by_user(after) == by_user(before)
        assert torch.equal(after.items.images, before.items.images)  # type: ignore[arg-type]
        named |= {(bad.number, bad.shard, bad.key) for bad in after.bad}
    # what the pool had already brought from the catalogue was not looked for in the tar
    assert named <= broken
    assert len(named) >= len(broken) - 2


def break_everywhere(root: Path, row: int, data: bytes) -> None:
    name = f"i{row:08d}.jpg"
    for tar in tars_with(root, name):
        replace_member(root, tar, name, member(name, data))


@pytest.fixture(scope="module")
def popular(small_domain: Domain) -> list[int]:
    """The three items that stand in most sequences."""
    return np.argsort(-small_domain.train_count(), kind="stable")[:3].tolist()


@pytest.fixture(scope="module")
def without_pictures(small_domain: Domain, popular: list[int], tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """A domain in which these have no picture in any tar, and two users no JSON."""
    root = copy_of(small_domain, tmp_path_factory.mktemp("broken") / "domain", with_checksums=False)
    for row, fault in zip(popular, ("0 bytes", "cut off", "no picture")):
        break_everywhere(root, row, PICTURES[fault])
    for tar in (TAR, "train/train-00005.tar"):
        replace_member(root, tar, users_of(root, tar)[0])
    return Domain.load(root)


def test_an_item_without_a_readable_picture_is_no_input_no_target_and_no_negative(
    small_domain: Domain, without_pictures: Domain, popular: list[int]
) -> None:
    drawn = {"with_negatives": True, "cloze_rate": 0.4, "workers": 2}
    lost_negatives = 0
    for before, after in zip(epoch(small_domain, **drawn), epoch(without_pictures, **drawn), strict=True):
        assert not set(after.items.ids.tolist()) & set(popular)
        assert len(after.items.images) == len(after.items)  # type: ignore[arg-type]
        old, new = by_user(before), by_user(after)
        for user, (sequence, negatives, asked) in new.items():
            assert sequence == [item for item in old[user][0] if item not in popular]
            assert len(negatives) == len(sequence) - 1
            assert not set(negatives) & {*sequence, *popular}
            assert all(0 < place < len(sequence) for place in asked)
            if len(sequence) == len(old[user][0]):
                # nothing is drawn anew but what cannot be had
                kept = [item for item in old[user][1] if item not in popular]
                lost_negatives += len(negatives) - len(kept)
                assert [new for new, was in zip(negatives, old[user][1]) if was not in popular] == kept
    assert lost_negatives > 0


@pytest.mark.parametrize("how", [{}, {"with_negatives": True, "cloze_rate": 0.4}], ids=["softmax", "bce"])
@pytest.mark.parametrize(("world_size", "workers", "accumulation"), [(2, 0, 1), (1, 2, 1), (2, 2, 2), (1, 0, 4)])
def test_what_is_left_out_does_not_depend_on_who_reads_it(
    without_pictures: Domain, popular: list[int], how: dict, world_size: int, workers: int, accumulation: int
) -> None:
    count = make_order([without_pictures]).steps_per_epoch + 2
    alone = steps([without_pictures], 1, 0, 1, count, **how)
    assert steps([without_pictures], world_size, workers, accumulation, count, **how) == alone
    resumed = steps([without_pictures], world_size, workers, accumulation, count - 2, first_step=2, **how)
    assert resumed == alone[2:]
    bad = {
        sample.number
        for rank in range(world_size)
        for batch in itertools.islice(
            batches([without_pictures], rank, world_size, workers, accumulation, **how),
            accumulation * make_order([without_pictures]).steps_per_epoch,
        )
        for sample in batch.bad
    }
    assert {number for number in bad if number >= 0} == set(popular)
    assert len(bad) == len(popular) + 2


ODD = {
    "CMYK": (picture("CMYK"), None),
    "gray": (picture("L"), None),
    "16 bits": (picture("I;16", kind="PNG"), None),
    "a palette": (picture("P", kind="PNG"), None),
    "a PNG named .jpg": (picture("RGBA", kind="PNG"), None),
    "a WebP": (picture(kind="WEBP", lossless=True), None),
    "animated": (
        picture(kind="GIF", save_all=True, append_images=[Image.new("RGB", (90, 60), "black")] * 3),
        None,
    ),
    "turned by EXIF": (picture(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"), 180),
    "progressive": (picture(progressive=True), None),
    "40 x 20,000": (picture(size=(40, 20_000)), None),
}


@pytest.mark.parametrize("kind", ODD)
def test_pictures_that_the_builder_would_not_write_are_seen_as_people_see_them(kind: str) -> None:
    data, turned = ODD[kind]
    left, right = (half.float().mean().item() for half in shown(data).split(8, dim=2))
    assert (left, right) == pytest.approx((220, 30) if turned else (30, 220), abs=12)


def test_a_flipped_byte_that_still_decodes_is_found_in_a_picture_and_in_a_users_json(
    small_domain: Domain, tmp_path: Path
) -> None:
    root = copy_of(small_domain, tmp_path / "domain")
    data = (root / TAR).read_bytes()
    with tarfile.open(root / TAR) as archive:
        places = {info.name: (info.offset_data, info.size) for info in archive}
    name = next(name for name in places if name.endswith(".jpg"))
    offset, size = places[name]
    for place in range(offset + size // 2, offset + size):
        changed = bytearray(data[offset : offset + size])
        changed[place - offset] ^= 1
        try:
            pixels = shown(bytes(changed))
        except OSError:
            continue
        if not torch.equal(pixels, shown(data[offset : offset + size])):
            flip(root / TAR, place)
            break
    else:
        raise AssertionError("no flip decodes to another picture")
    user = users_of(root, TAR)[4]
    offset, size = places[user]
    begin = offset + data[offset : offset + size].index(b'"items":[') + len(b'"items":[')
    flip(root / TAR, begin)  # another digit: another item, or a time of other times
    broken = Domain.load(root)
    bad = {sample.key: sample.why for batch in epoch(broken, workers=2) for sample in batch.bad}
    assert bad.keys() == {name[:9], user[:9]}
    assert all("checksum" in why for why in bad.values())


@pytest.mark.parametrize("offset", [0, 3, 110, 124, 130, 150, 156, 260, 345, 400])
@pytest.mark.parametrize("whose", ["u", "i"])
def test_a_damaged_header_costs_no_more_than_its_own_member(
    small_domain: Domain, tmp_path: Path, offset: int, whose: str
) -> None:
    root = copy_of(small_domain, tmp_path / "domain", with_checksums=False)
    with tarfile.open(root / TAR) as archive:
        found = [info for info in archive if info.name.startswith(whose) and info.name.endswith((".jpg", "u.json"[1:]))]
    info = found[len(found) // 2]
    flip(root / TAR, info.offset + offset, bit=2)
    named = {bad.key for batch in epoch(Domain.load(root)) for bad in batch.bad}
    assert named == ({info.name[:9]} if info.name.endswith(".jpg") or whose == "u" else set())


def test_a_picture_of_the_catalogue_that_cannot_be_read_is_gray_in_evaluation_and_named(
    small_domain: Domain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = copy_of(small_domain, tmp_path / "domain")
    for row in (7, 200):
        place = small_domain.items.row(row, named=True)
        flip(root / place["tar"], place["offset"] + place["size"] // 2)
    broken = Domain.load(root)
    with pytest.raises(Unreadable, match="checksum"):
        broken.read_image(7)
    rows = np.arange(small_domain.num_items)
    for _ in range(2):  # workers decode, this process speaks
        found = torch.cat([items.images for items in iter_item_batches(broken, READS, rows, 64, num_workers=1)])
    whole = torch.cat([items.images for items in iter_item_batches(small_domain, READS, rows, 64)])
    whole[[7, 200]] = 128
    assert torch.equal(found, whole)
    assert [record.message.count("mid-gray stands for the picture of") for record in caplog.records] == [1, 1]
    assert f"{root}/items/items-00000.tar: i00000007" in caplog.text
    with pytest.raises(UserError, match=r"2 or more of the 300 items .* i00000200 .*; 0.500% may"):
        list(iter_item_batches(broken, READS, rows, 64, max_bad=0.005))


def test_a_manifest_or_catalogue_that_leads_out_of_the_domain_is_refused(small_domain: Domain, tmp_path: Path) -> None:
    root = copy_of(small_domain, tmp_path / "catalogue")
    items = pl.read_parquet(root / "items.parquet")
    items.with_columns(tar=pl.lit("../../etc/passwd")).write_parquet(root / "items.parquet")
    with pytest.raises(UserError, match="names a file outside of it"):
        Domain.load(root)
    root = copy_of(small_domain, tmp_path / "manifest")
    meta = json.loads((root / "domain.json").read_text())
    meta["tars"][0]["path"] = "/etc/passwd"
    (root / "domain.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="names a file outside of it"):
        Domain.load(root)


def test_places_in_the_catalogue_that_cannot_be(small_domain: Domain, tmp_path: Path) -> None:
    root = copy_of(small_domain, tmp_path / "domain", with_checksums=False)
    items = pl.read_parquet(root / "items.parquet")
    offset = items["offset"].to_list()
    size = items["size"].to_list()
    offset[0], size[1], offset[2], size[3], size[4] = 2**60, 2**40, -5, -1, None
    columns = (pl.Series("offset", offset, dtype=pl.Int64), pl.Series("size", size, dtype=pl.Int64))
    items.with_columns(columns).write_parquet(root / "items.parquet")
    broken = Domain.load(root)
    for row in range(5):
        with pytest.raises(Unreadable):
            broken.read_image(row)
    assert Image.open(io.BytesIO(broken.read_image(5)))

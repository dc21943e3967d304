"""Reading a domain directory: what is cold, and what is said of a directory that is none or not whole."""

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsr_pt.data.domain import EVAL_FILE, ITEMS_FILE, MANIFEST_FILE, TOKENIZER_FILE, Domain
from mmsr_pt.data.shards.build import BuildOptions
from mmsr_pt.data.tar_reader import TarReader
from mmsr_pt.log import UserError
from tests.data.raw import Interaction, build_table, write_table


def test_cold_is_fewer_than_10_training_occurrences(tmp_path: Path) -> None:
    """All of 10 users train on `ten`, 9 on `nine`; everybody is tested on them, which does not count."""
    rows: list[Interaction] = []
    for user in range(10):
        second = "nine" if user < 9 else "rare"
        own = ["ten", second, f"own{user}", "nine", "ten"]
        if user == 0:
            own = [f"own{user}", "nine", "ten", "nine", "ten"]
        rows += [(f"u{user}", item, time) for time, item in enumerate(own)]
    titles = {name: name for name in ["nine", "rare", "ten", "never", *(f"own{user}" for user in range(10))]}
    domain = build_table(write_table(tmp_path / "raw", rows, titles), tmp_path / "out")
    counts = dict(domain.items.select("item_id", "train_count").iter_rows())
    assert counts == {"ten": 10, "nine": 9, "rare": 1, "never": 0} | {f"own{user}": 1 for user in range(10)}
    # positions in [ten, nine or rare, own, nine, ten]; u0's first item is cold but has no history to predict it from
    assert domain.eval["cold_cases"].to_list() == [[1, 3]] + [[1, 2, 3]] * 9


def test_a_domain_without_cold_cases_has_empty_lists(tmp_path: Path) -> None:
    rows: list[Interaction] = [(f"u{user}", str(time % 3), time) for user in range(10) for time in range(8)]
    domain = build_table(write_table(tmp_path / "raw", rows, {str(i): "t" for i in range(3)}), tmp_path / "out")
    assert domain.items["train_count"].to_list() == [20, 20, 20]
    assert domain.eval["cold_cases"].to_list() == [[]] * 10


def test_what_the_manifest_says_is_what_the_domain_says(small_domain: Domain) -> None:
    meta = json.loads((small_domain.path / MANIFEST_FILE).read_text())
    assert small_domain.name == meta["name"] == "small_domain"
    assert small_domain.num_users == small_domain.eval.height == 150
    assert small_domain.num_items == small_domain.items.height == 300
    assert small_domain.modalities == ("text", "image")
    assert sum(tar.num_users for tar in small_domain.train_tars) == 150
    titles = small_domain.items["title"].to_list()
    assert list(small_domain.titles()) == titles
    assert small_domain.titles()[7:9] == titles[7:9]
    assert small_domain.train_count().tolist() == small_domain.items["train_count"].to_list()


def test_it_travels_to_other_processes_small_and_reads_pictures_there(small_domain: Domain) -> None:
    _ = small_domain.items, small_domain.eval
    packed = pickle.dumps(small_domain)
    assert len(packed) < 50_000  # 150 users' histories alone are more
    arrived = pickle.loads(packed)
    assert arrived.read_image(7) == small_domain.read_image(7)
    assert arrived.eval.equals(small_domain.eval)


def test_a_domain_of_titles_alone_says_that_it_has_no_pictures(tmp_path: Path) -> None:
    root = write_table(tmp_path / "raw", [("u", str(i), i) for i in range(5)], {str(i): "t" for i in range(5)})
    shutil.rmtree(root / "images")
    domain = build_table(root, tmp_path / "out", BuildOptions(modalities=("text",), num_workers=1))
    assert domain.items["offset"].null_count() == 5
    with pytest.raises(UserError, match="built without pictures: .* --modalities text image"):
        domain.read_image(0)


def test_a_domain_of_pictures_alone_needs_no_titles(tmp_path: Path) -> None:
    root = write_table(tmp_path / "raw", [("u", str(i), i) for i in range(5)], {str(i): "" for i in range(5)})
    domain = build_table(root, tmp_path / "out", BuildOptions(modalities=("image",), num_workers=1))
    assert domain.num_items == 5
    assert not (domain.path / TOKENIZER_FILE).exists()


# ---- directories that are no whole domain


def edit_manifest(path: Path, **values: object) -> None:
    manifest = path / MANIFEST_FILE
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **values}))


def halve(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: shutil.rmtree(d), r"there is no domain directory .*: build it with shards/build\.py --out"),
        (lambda d: (d / MANIFEST_FILE).unlink(), r"is no domain directory \(it has no domain\.json\)"),
        (lambda d: halve(d / MANIFEST_FILE), r"domain\.json cannot be read: build the domain again"),
        (lambda d: (d / MANIFEST_FILE).write_text("[]"), r"domain\.json cannot be read: build the domain again"),
        (lambda d: edit_manifest(d, format_version=0), r"has domain format 0, this version reads \d+: build it again"),
        (
            lambda d: edit_manifest(d, format_version=99),
            r"has domain format 99, this version reads \d+: build it again",
        ),
        (lambda d: (d / "train/train-00003.tar").unlink(), r"train-00003\.tar is missing: copy the domain again"),
        (lambda d: (d / "items/items-00000.tar").unlink(), r"items-00000\.tar is missing: copy the domain again"),
        (lambda d: halve(d / "train/train-00007.tar"), r"train-00007\.tar has \d+ bytes instead of \d+: copy"),
        (lambda d: (d / ITEMS_FILE).unlink(), r"is incomplete \(items\.parquet is missing\)"),
        (lambda d: (d / EVAL_FILE).unlink(), r"is incomplete \(eval\.parquet is missing\)"),
        (lambda d: (d / TOKENIZER_FILE).unlink(), r"is incomplete \(tokenizer\.model is missing\)"),
        (lambda d: halve(d / ITEMS_FILE), r"items\.parquet cannot be read: copy the domain again"),
        (lambda d: halve(d / EVAL_FILE), r"eval\.parquet cannot be read: copy the domain again"),
    ],
)
def test_what_is_no_whole_domain_is_refused_in_one_sentence(
    small_domain: Domain, tmp_path: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_domain.path, copy)
    assert Domain.load(copy).fingerprint == small_domain.fingerprint
    damage(copy)
    with pytest.raises(UserError, match=sentence) as caught:
        Domain.load(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_some_training_users_are_among_more_of_them(small_domain: Domain) -> None:
    few, more, everyone = (set(Domain.load(small_domain.path, n, 7).training_users["user"]) for n in (20, 90, 150))
    assert [len(users) for users in (few, more, everyone)] == [20, 90, 150]
    assert few < more < everyone == set(small_domain.eval["user"])
    assert set(Domain.load(small_domain.path, 20, 8).training_users["user"]) != few
    assert Domain.load(small_domain.path, 150).max_users == Domain.load(small_domain.path, 999).max_users == 0


def test_what_is_cold_follows_from_those_who_train(small_domain: Domain) -> None:
    some = Domain.load(small_domain.path, 20)
    counted = Counter(row for history in some.training_users["history"] for row in history.to_list())
    assert some.train_count().tolist() == [counted[row] for row in range(small_domain.num_items)]
    assert some.items["train_count"].to_list() == some.train_count().tolist()
    assert (some.train_count() <= small_domain.train_count()).all()
    assert some.num_items == small_domain.num_items
    assert some.eval.equals(small_domain.eval)


def test_the_tars_tell_where_the_training_users_stand(small_domain: Domain) -> None:
    some = pickle.loads(pickle.dumps(Domain.load(small_domain.path, 20, 3)))
    found = []
    for tar in some.train_tars:
        reader = TarReader(str(tar.path), with_pictures=False)
        found += [reader.user(tar.place(number))["user"] for number in range(tar.num_users)]
    assert sorted(found) == some.training_users["user"].to_list()


def test_a_domain_of_an_earlier_version_trains_on_all_users_only(small_domain: Domain, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(small_domain.path, old)
    small_domain.eval.drop("place").write_parquet(old / "eval.parquet")
    assert Domain.load(old).num_users == 150
    with pytest.raises(UserError, match=r"earlier version.*build it again with --overwrite.*--max_users 20"):
        Domain.load(old, 20)

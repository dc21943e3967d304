"""A look at every byte of a domain: nothing to say of a whole one, and each damage by file, user and item."""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from mmsr_pt import cli
from mmsr_pt.data.activations import ActivationStore, Layout
from mmsr_pt.data.check import damages
from mmsr_pt.data.domain import Domain
from tests.data.broken import copy_of, flip

TAR = "train/train-00002.tar"


def place_of(root: Path, tar: str, ending: str) -> tuple[str, int, int]:
    """Key, offset and size of a member whose name ends so."""
    with tarfile.open(root / tar) as archive:
        info = next(
            info
            for info in archive
            if info.name.endswith(ending) and info.name[0] == ("u" * (ending == ".json") or "i")
        )
    return info.name.partition(".")[0], info.offset_data, info.size


def make_cache(root: Path) -> Path:
    directory = root / "cache" / "abc"
    directory.mkdir(parents=True)
    layout = Layout(300, "float32", vision_shape=(4,), has_sums=True)
    values = torch.arange(1200.0).view(300, 4)
    ActivationStore.create(directory, layout, None).write(torch.arange(300), None, None, values)
    return directory


def test_a_whole_domain_is_whole(small_domain: Domain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_of(small_domain, tmp_path / "domain")
    make_cache(root)
    looked_at: list[str] = []
    assert list(damages(root, looked_at.append)) == []
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert set(looked_at) == {name for name in files if not name.startswith("cache/")} - {"domain.json"} | {"cache/abc"}
    cli.main(["check", "--data", str(root)])
    assert f"all of its {len(looked_at) - 1} files are as they were written" in capsys.readouterr().out


def test_each_damage_is_named(small_domain: Domain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_of(small_domain, tmp_path / "domain")
    user, offset, _ = place_of(root, TAR, ".json")
    flip(root / TAR, offset + 8)
    item, offset, size = place_of(root, TAR, ".jpg")
    flip(root / TAR, offset + size - 1)
    kept, offset, size = place_of(root, "items/items-00000.tar", ".jpg")
    flip(root / "items/items-00000.tar", offset + size // 2)
    (root / "train/train-00004.tar").unlink()
    with (root / "train/train-00005.tar").open("r+b") as file:
        file.truncate(4000)
    flip(make_cache(root) / "vision.bin", 16 * 7)
    found = list(damages(root))
    assert found[:4] == [
        "items/items-00000.tar (other bytes than were written)",
        "train/train-00002.tar (other bytes than were written)",
        "train/train-00004.tar (missing)",
        "train/train-00005.tar (other bytes than were written)",
    ]
    named = [line.partition(" (")[0] for line in found[4:]]
    assert named[:3] == [f"items/items-00000.tar: {kept}", f"{TAR}: {user}", f"{TAR}: {item}"]
    cut = {line for line in named if line.startswith("train/train-00005.tar: u")}
    assert len(cut) == json.loads((root / "domain.json").read_text())["tars"][6]["samples"]
    assert found[-1] == "cache/abc/vision.bin at 7"
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", "--data", str(root)])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert f"is damaged ({len(found)} lines above)" in told.err
    assert told.out.splitlines() == found


@pytest.mark.parametrize("name", ["items.parquet", "eval.parquet", "tokenizer.model"])
def test_a_damaged_table_is_named(small_domain: Domain, tmp_path: Path, name: str) -> None:
    root = copy_of(small_domain, tmp_path / "domain")
    flip(root / name, 1000)
    assert list(damages(root)) == [f"{name} (other bytes than were written)"]


def test_every_byte_of_a_tar_is_looked_at(small_domain: Domain, tmp_path: Path) -> None:
    root = copy_of(small_domain, tmp_path / "domain")
    whole = (root / TAR).read_bytes()
    for place in range(3, len(whole), len(whole) // 25):
        flip(root / TAR, place)
        assert f"{TAR} (other bytes than were written)" in list(damages(root))
        (root / TAR).write_bytes(whole)


@pytest.mark.parametrize("text", ["", "[]", '{"tars": []}', "{"])
def test_a_manifest_that_says_nothing_is_one_sentence(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "domain.json").write_text(text)
    with pytest.raises(SystemExit):
        cli.main(["check", "--data", str(tmp_path)])
    assert "error: " in capsys.readouterr().err

"""Users and pictures by their place in a tar, against Python's own tarfile."""

import json
from pathlib import Path

import pytest

from mmsr_pt.data import tar_reader
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.tar_reader import OpenTars, TarReader
from mmsr_pt.log import UserError
from tests.data.tars import members


@pytest.mark.parametrize("window", [512, 1024, 256 * 1024])
def test_every_user_and_picture_is_where_tarfile_finds_it(
    small_domain: Domain, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(tar_reader, "_WINDOW", window)
    for tar in small_domain.train_tars[:3]:
        reader = TarReader(str(tar.path), with_pictures=True)
        content = members(tar.path)
        users = [json.loads(data) for name, data in content if name.startswith("u")]
        assert [reader.user(position) for position in range(len(reader))] == users
        pictures = {int(name[1:9]): data for name, data in content if name.endswith(".jpg")}
        assert pictures
        for row in reversed(list(pictures)):
            assert reader.picture(row) == pictures[row]


def test_a_tar_is_open_once_while_somebody_reads_it_and_then_let_go(small_domain: Domain) -> None:
    tars = OpenTars(with_pictures=False)
    path = str(small_domain.train_tars[0].path)
    first = tars(path, 1)
    assert tars(path, 2) is first
    assert len(tars._open) == 1
    del first
    assert len(tars._open) == 0


def test_a_tar_with_fewer_users_than_promised_is_cut_short(small_domain: Domain, tmp_path: Path) -> None:
    tar = small_domain.train_tars[0]
    cut = tmp_path / "train-00000.tar"
    data = tar.path.read_bytes()
    for kept in (len(data) // 2, len(data) // 2 + 100):  # in a member, in a block
        cut.write_bytes(data[:kept])
        with pytest.raises(UserError, match=rf"ends after \d+ users, its manifest promises {tar.num_users} or more"):
            OpenTars(with_pictures=True)(str(cut), tar.num_users)


def test_what_is_no_tar_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.tar"
    path.write_bytes(b"x" * 2048)
    with pytest.raises(UserError, match=r"train-00000\.tar is damaged at byte 0: copy the domain again"):
        TarReader(str(path), with_pictures=True)

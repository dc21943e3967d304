"""Tables that are no valid UTF-8: what they are taken for, what becomes of broken bytes, and that the log says so."""

import logging
from pathlib import Path

import pytest

from mmsr_pt.data.sources import encoding
from mmsr_pt.data.sources.base import scan_table
from mmsr_pt.data.sources.encoding import as_utf8
from mmsr_pt.log import UserError

CHINESE = "id,title\n01,韩国电影，《女教师》\n02,搞笑视频, 二\n03,plain\n"
FRENCH = "id,title\n01,Amélie (2001)\n02,Les Misérables\n03,Café “noir”\n04,plain\n"


def rows(path: Path, scratch: Path) -> list[tuple[str | None, ...]]:
    return scan_table(path, ("id", "title"), scratch).collect().select("id", "title").rows()


@pytest.mark.parametrize("text", [CHINESE.replace(", 二", "二"), FRENCH, "\ufeff" + FRENCH, "id,title\n1,a\n", ""])
def test_valid_utf8_is_read_where_it_lies(tmp_path: Path, text: str) -> None:
    path, scratch = tmp_path / "items.csv", tmp_path / "scratch"
    scratch.mkdir()
    path.write_bytes(text.encode())
    assert as_utf8(path, scratch) == path
    assert list(scratch.iterdir()) == []


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(b"\xef\xbb\xbf" + b'ID,Title\r\n007,"two\r\nlines"\r\n8,x\r\n')
    assert rows(path, tmp_path) == [("007", "two\r\nlines"), ("8", "x")]


@pytest.mark.parametrize(("codec", "named"), [("gbk", "gb18030"), ("gb18030", "gb18030")])
def test_chinese_in_gbk_is_read_as_what_it_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, named: str
) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(CHINESE.replace(", 二", "二").encode(codec))
    with caplog.at_level(logging.INFO):
        assert rows(path, tmp_path) == [("01", "韩国电影，《女教师》"), ("02", "搞笑视频二"), ("03", "plain")]
    assert f"{path} is not valid UTF-8: read as {named}, 0 of its lines with broken characters (0," in caplog.text
    assert caplog.records[0].levelno == logging.INFO


@pytest.mark.parametrize("codec", ["latin-1", "cp1252"])
def test_western_letters_in_latin_1_are_read_as_what_they_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str
) -> None:
    text = FRENCH if codec == "cp1252" else FRENCH.replace("“noir”", "noir")
    path = tmp_path / "items.csv"
    path.write_bytes(text.encode(codec))
    with caplog.at_level(logging.INFO):
        assert [title for _, title in rows(path, tmp_path)] == [line[3:] for line in text.splitlines()[1:]]
    assert "read as cp1252, 0 of its lines" in caplog.text


def test_broken_bytes_in_utf8_become_marks_that_are_counted_and_nothing_else_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [f"{number:03d},搞笑视频{number}\n".encode() for number in range(50)]
    broken = list(good)
    broken[7] = good[7].replace("频".encode(), b"\xe9\xa2")  # cut off in the middle of a character
    broken[9] = b"009,\xff\xfe bad\n"
    path = tmp_path / "items.csv"
    path.write_bytes(b"id,title\n" + b"".join(broken))
    with caplog.at_level(logging.INFO):
        found = rows(path, tmp_path)
    assert found[7] == ("007", "搞笑视\ufffd7")
    assert found[9] == ("009", "\ufffd\ufffd bad")
    assert [row for place, row in enumerate(found) if place not in (7, 9)] == [
        (f"{number:03d}", f"搞笑视频{number}") for number in range(50) if number not in (7, 9)
    ]
    assert "read as utf-8, 2 of its lines with broken characters (3, now U+FFFD)" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_titles_cut_off_within_a_character_are_still_utf8(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(b"id,title\n" + b"".join(b"%d,%b\n" % (n, "搞笑视频搞笑视频".encode()[:-1]) for n in range(9)))
    assert rows(path, tmp_path) == [(str(n), "搞笑视频搞笑视\ufffd") for n in range(9)]
    assert "read as utf-8, 9 of its lines with broken characters (9, now U+FFFD)" in caplog.text


def test_a_file_put_together_from_two_encodings_is_read_line_by_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "items.csv"
    codecs = ["utf-8", "gbk"] * 5
    path.write_bytes(b"id,title\n" + b"".join(f"{n},搞笑视频\n".encode(codec) for n, codec in enumerate(codecs)))
    with caplog.at_level(logging.INFO):
        assert rows(path, tmp_path) == [(str(n), "搞笑视频") for n in range(10)]
    assert "read as utf-8 and gb18030, 0 of its lines" in caplog.text


def test_broken_bytes_in_gbk_never_eat_a_comma_or_a_line_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "items.csv"
    lines = [b"id,title", *("%d,搞笑视频".encode("gbk") % n for n in range(9)), b"\xd6,\xd6", b"10,end"]
    path.write_bytes(b"\r\n".join(lines) + b"\r\n")
    with caplog.at_level(logging.INFO):
        assert rows(path, tmp_path)[-2:] == [("\ufffd", "\ufffd"), ("10", "end")]
    assert "read as gb18030, 1 of its lines with broken characters (2, now U+FFFD)" in caplog.text


@pytest.mark.parametrize("tail", [b"", b"\xe9"])
def test_a_character_across_two_chunks_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: bytes) -> None:
    monkeypatch.setattr(encoding, "_CHUNK_BYTES", 4)
    path = tmp_path / "items.csv"
    path.write_bytes("abc频abc频\n".encode() + tail)  # 频 is three bytes: chunks of 4 cut both in two
    assert (as_utf8(path, tmp_path) == path) == (not tail)


def test_two_tables_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    texts = {"a": "搞笑视频一", "b": "搞笑视频二"}
    for folder, title in texts.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.csv").write_bytes(f"id,title\n1,{title}\n".encode("gbk"))
    tables = [scan_table(tmp_path / folder / "same.csv", ("id",), tmp_path) for folder in texts]
    assert [table.collect()["title"].item() for table in tables] == list(texts.values())


def test_utf_16_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(FRENCH.encode("utf-16"))
    with pytest.raises(UserError, match="is UTF-16: convert it first, as by iconv"):
        as_utf8(path, tmp_path)

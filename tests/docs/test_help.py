"""What the programs say of themselves: each command in its place, with an example that the program takes."""

import re
from collections.abc import Callable

import pytest

from mmsr_pt import cli
from mmsr_pt.cli.study import transfer_command
from mmsr_pt.config import FinetuneConfig, PretrainConfig
from mmsr_pt.data.shards.command import parse_command
from tests.docs.test_commands import CHECKS, COMMANDS, Parsed


def examples(text: str) -> list[list[str]]:
    """The words of every example in a help text."""
    return [match.split() for match in re.findall(r"Example: (.*)", text)]


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_the_first_help_tells_every_command_in_a_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == (0 if words else 2)
    said = "".join(capsys.readouterr())
    listed = re.findall(r"^    (\w+)  +\S", said.partition("Before")[0], re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    assert max(len(line) for line in said.splitlines()) <= 120


@pytest.mark.parametrize("command", [*COMMANDS.values(), transfer_command], ids=lambda command: command.__name__)
def test_every_command_has_an_example_that_it_takes(
    command: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (words,) = examples(command.__doc__ or "")
    assert words[0] == "mmsr-pt"
    Parsed(monkeypatch).check(tuple(words[1:]))


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_the_scripts_have_an_example_that_they_take(kind: type) -> None:
    (words,) = examples(kind.__doc__ or "")
    CHECKS[words[0]](tuple(words[1:]))


def test_the_help_of_the_builder_has_one_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command(["--help"])
    (words,) = examples(capsys.readouterr().out)
    CHECKS[words[0]](tuple(words[1:]))

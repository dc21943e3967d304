"""From a command line to a configuration: tyro makes flags of the fields, a wrong one gets one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
from collections.abc import Collection, Sequence
from typing import TypeVar, overload

from mmsr_pt.config import ModelConfig, PretrainConfig
from mmsr_pt.log import UserError
from mmsr_pt.presets import find_preset

RunT = TypeVar("RunT", bound=PretrainConfig)


def preset(name: str, but: Collection[str] = ()) -> PretrainConfig:
    """The defaults that `--preset name` stands for; flags given beside it win.

    Args:
        name: one of PRESETS.
        but: fields that keep their own defaults.
    """
    values = {"preset": name, **{key: value for key, value in find_preset(name).items() if key not in but}}
    parts = {part.name: part.default_factory for part in dataclasses.fields(PretrainConfig)}
    known = {part: {f.name for f in dataclasses.fields(kind)} for part, kind in parts.items()}  # type: ignore[arg-type]
    assert values.keys() <= set().union(*known.values()), f"preset {name} sets a field that no part has"
    return PretrainConfig(
        **{
            part: kind(**{key: value for key, value in values.items() if key in known[part]})  # type: ignore[operator]
            for part, kind in parts.items()
        }
    )


@overload
def parse_flags(argv: list[str]) -> PretrainConfig: ...
@overload
def parse_flags(argv: list[str], kind: type[RunT], model: ModelConfig | None = None) -> RunT: ...
def parse_flags(
    argv: list[str], kind: type[PretrainConfig] = PretrainConfig, model: ModelConfig | None = None
) -> PretrainConfig:
    """The configuration that command-line flags ask for; a flag beats its preset.

    Args:
        argv: the flags.
        kind: which script's.
        model: settings of a model that goes on learning: flags beat them, they beat the preset.

    Raises:
        UserError: an unknown flag or a value that it cannot take.
    """
    import tyro

    given = fields_given(argv, kind)
    # what is given wins anyway; left in, the preset's value might contradict it before it is replaced
    settings = preset(flag_value(argv, "preset") or "default", but=given)
    if model is not None:
        settings = dataclasses.replace(settings, model=model)
    default = kind(**{part.name: getattr(settings, part.name) for part in dataclasses.fields(settings)})
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind,
                args=argv,
                default=default,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
                use_underscores=True,
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise UserError(_sentence_in_box(complaint.getvalue(), kind)) from None


def fields_given(argv: Sequence[str], kind: type[PretrainConfig] = PretrainConfig) -> list[str]:
    """The fields that flags stand for, in their order; raises UserError where one stands for none."""
    parts = [part.default_factory for part in dataclasses.fields(kind)]
    known = ["--help", *(f"--{f.name}" for part in parts for f in dataclasses.fields(part))]  # type: ignore[arg-type]
    given = []
    for word in argv:
        flag = as_flag(word)
        if flag is not None and flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"unknown flag {word.partition('=')[0]}: {hint}--help lists all flags")
        if flag is not None:
            given.append(flag.removeprefix("--"))
    return given


def flag_value(argv: Sequence[str], field: str) -> str | None:
    """What stands behind the last flag of that name; None: it is not there."""
    value = None
    for position, word in enumerate(argv):
        if word == f"--{field}" and position + 1 < len(argv):
            value = argv[position + 1]
        elif word.startswith(f"--{field}="):
            value = word.partition("=")[2]
    return value


def as_flag(word: str) -> str | None:
    """The flag that a word of a command line is, with underscores and without a value; None: a value by itself."""
    return word.partition("=")[0].replace("-", "_").replace("__", "--", 1) if word.startswith("--") else None


def _sentence_in_box(box: str, kind: type[PretrainConfig]) -> str:
    """What tyro says, without its frame, its help text and the name of the config class that refused a value."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    rules = [number for number, line in enumerate(lines) if line.startswith("──")]
    said = " ".join(" ".join(lines[: rules[0] if rules else None]).split())
    for part in (kind.__name__, *(part.name for part in dataclasses.fields(kind))):
        said = said.removeprefix(f"Error parsing {part}: ")
    return f"{said.partition(' Got errors:')[0].rstrip('.')} (--help tells what each flag takes)"

"""The command line of shards/build.py: a source's own flags, and those that every build has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, Union

import tyro

from mmsr_pt.data.shards.build import BuildOptions
from mmsr_pt.data.sources import SOURCES, Source

SourceT = TypeVar("SourceT", bound=Source)


@dataclass(frozen=True)
class BuildCommand(Generic[SourceT]):
    """What to build, where to, and how."""

    source: SourceT
    out: Path
    """The domain directory to make."""
    options: BuildOptions = field(default_factory=BuildOptions)


def parse_command(argv: Sequence[str]) -> BuildCommand[Source]:
    """Reads the flags.

    Raises:
        UserError: an unknown source, with the nearest known name.
        SystemExit: --help (0), an unknown or missing flag (2).
    """
    if argv and not argv[0].startswith("-"):
        _ = SOURCES[argv[0]]
    commands: Any = tuple(
        Annotated[
            BuildCommand[SOURCES[name]],  # type: ignore[valid-type]
            tyro.conf.subcommand(name, description=SOURCES[name].__doc__, prefix_name=False),
        ]
        for name in SOURCES
    )
    return tyro.cli(
        Union[commands],  # noqa: UP007 (of a tuple made here)
        prog="shards/build.py",
        description="Turns a raw dataset into a domain directory; --help behind a source's name lists its flags.\n\n"
        "Example: python shards/build.py table --root raw/mine --out data/mine",
        args=list(argv),
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )

"""Turns a raw dataset into a domain directory: a catalogue, training tars and held-out items.

    python shards/build.py hm --root RAW --out data/hm
    python shards/build.py table --root RAW --out data/mine
    python shards/build.py synthetic --variant target --out data/drawn_target

`--help` after a source's name lists its flags; shards/README.md describes the layouts that go in and the one that comes
out.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mmsr_pt.data.shards.build import build_domain
from mmsr_pt.data.shards.command import parse_command
from mmsr_pt.data.shards.manifest import print_summary
from mmsr_pt.data.shards.output import check_output
from mmsr_pt.log import setup_logging, user_facing

log = logging.getLogger(__name__)


@user_facing
def main(argv: Sequence[str] | None = None) -> None:
    """Builds one domain."""
    setup_logging()
    started = time.monotonic()
    command = parse_command(sys.argv[1:] if argv is None else argv)
    check_output(command.out, command.options.overwrite)
    with tempfile.TemporaryDirectory(prefix="mmsr_pt-") as scratch:
        raw = command.source.read(Path(scratch), with_images="image" in command.options.modalities)
        domain = build_domain(raw, command.out, command.options)
    print_summary(domain)
    log.info("%s is complete after %.1f s", command.out, time.monotonic() - started)


if __name__ == "__main__":
    main()

"""Every command of the pages, as bash expands it: the blocks are run with programs that only write down their words.

So variables, loops, continuation lines and here-documents are the shell's matter and not ours.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.docs.pages import Block, blocks, page_names
from tests.docs.stage import VARIABLES, run_block, write_programs

PROGRAMS = (
    "deepspeed", "hf", "make", "mmsr-pt", "pip", "python", "sbatch", "scontrol", "srun", "tensorboard", "torchrun",
)  # fmt: skip
"""What the pages call, beside the programs of `stage.REAL`."""
AT_A_PATH = ("V/bin/pip",)
_RECORD = '#!/bin/bash\nprintf \'%s\\0\' "{name}" "$@" $\'\\x1e\' >> "$RECORD"\n'


@dataclass(frozen=True)
class Command:
    """A command of a page, expanded."""

    block: Block
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.block}: {' '.join(self.words)[:120]}"


@functools.cache
def all_commands() -> list[Command]:
    """The commands of all pages in order, those that bash and `stage.REAL` do by themselves left out."""
    found: list[Command] = []
    with tempfile.TemporaryDirectory() as scratch:
        record = Path(scratch) / "record"
        names = [*PROGRAMS, "curl"]
        real = {"cat", "head", "mkdir"}
        programs = write_programs(
            Path(scratch) / "bin", {name: _RECORD.format(name=name) for name in names}, sorted(real)
        )
        for page in page_names():
            cwd = Path(scratch) / page.replace("/", "-")
            write_programs(cwd, {name: _RECORD.format(name=name) for name in AT_A_PATH}, [])
            (cwd / ".venv/bin").mkdir(parents=True)
            (cwd / ".venv/bin/activate").touch()
            for block in blocks(page, "bash"):
                record.write_bytes(b"")
                done = run_block(block.text, cwd, programs, {**VARIABLES, "RECORD": str(record)}, 60)
                assert done.returncode == 0, f"{block}: {done.stderr}"
                for entry in record.read_bytes().decode().split("\x1e\0")[:-1]:
                    found.append(Command(block, tuple(entry.split("\0")[:-1])))
    return found

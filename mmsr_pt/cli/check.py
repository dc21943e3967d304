"""`mmsr-pt check`: is a domain as it was written?"""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from mmsr_pt.data.check import damages, files_of
from mmsr_pt.log import UserError, redraw_seconds


def check_command(data: Path) -> None:
    """Look at every byte of a domain and of its caches, and name what is damaged: files, users, items.

    Training and evaluation notice what they read; this looks at all of it, at the speed of the disk. The exit code is 2
    where something is damaged.

    Example: mmsr-pt check --data data/hm

    Args:
        data: The domain directory.
    """
    files = files_of(data)
    found = []
    with tqdm(total=len(files), desc="check", unit="file", mininterval=redraw_seconds()) as bar:
        for line in damages(data, lambda name: bar.update(name in files)):
            found.append(line)
            tqdm.write(line)
    if found:
        raise UserError(
            f"{data} is damaged ({len(found)} lines above): copy those files again from where they are whole, or build "
            "the domain again with --overwrite; of a cache, remove the directory"
        )
    sys.stdout.write(f"{data}: all of its {len(files)} files are as they were written\n")

"""A Hugging Face Space of the explorer: what is shown, and all the code that shows it.

    README.md               the header that the hub reads, what is shown, the domain's licence note
    app.py  requirements.txt
    exhibit/                models, vectors, thumbnails, titles, histories: see exhibit.py
    mmsr_pt/                this package's own source, so that nothing but its dependencies is installed

It needs no domain and no tars. Where it runs there is no training: what only trains is not installed.
"""

from __future__ import annotations

import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from huggingface_hub import SpaceCardData

import mmsr_pt
from mmsr_pt.explore.exhibit import Exhibit
from mmsr_pt.run_dir import write_text

_TRAINS = ("deepspeed", "ninja", "setuptools", "tensorboard")
"""Dependencies of the package that nothing here imports; the first builds its kernels by the next two."""
_APP = '''"""The explorer of mmsr_pt, on the models in exhibit/."""

from pathlib import Path

from mmsr_pt.explore.app import launch
from mmsr_pt.explore.exhibit import Exhibit

if __name__ == "__main__":
    launch(Exhibit.load(Path(__file__).parent / "exhibit"))
'''


def lay_out_space(exhibit: Exhibit, directory: Path, licence: str | None = None) -> str:
    """Puts all files of a Space into `directory`, which is empty.

    Args:
        exhibit: what it shows.
        directory: is there.
        licence: of the Space, as the hub spells it; None: its README states none.

    Returns:
        In a few words what it is.
    """
    exhibit.save(directory / "exhibit")
    package = Path(mmsr_pt.__file__).parent
    shutil.copytree(package, directory / package.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    write_text(directory / "app.py", _APP)
    write_text(directory / "requirements.txt", "".join(f"{line}\n" for line in requirements()))
    write_text(directory / "README.md", _readme(exhibit, licence))
    return f"Explorer of {exhibit.domain['name']} by {', '.join(exhibit.models)}"


def requirements() -> list[str]:
    """What the Space installs beside gradio: the dependencies of this package, without those of training."""
    needed = [line for line in metadata.requires(mmsr_pt.__name__) or [] if "extra ==" not in line]
    return [line for line in needed if re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() not in _TRAINS]


def _readme(exhibit: Exhibit, licence: str | None) -> str:
    domain = exhibit.domain
    header = SpaceCardData(
        title=f"Explore {domain['name']}",
        sdk="gradio",
        sdk_version=metadata.version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license=licence,
        tags=["recommender-system", "sequential-recommendation"],
    )
    trained = "\n".join(
        f"- {name}, trained on {', '.join(entry['name'] for entry in shown.model.recommender.trained_on) or 'nothing'}"
        for name, shown in exhibit.models.items()
    )
    histories = f", and the histories of {len(exhibit.users):,} users without their ids," if len(exhibit.users) else ""
    stated = f"is published under `{licence}` as far as its publisher can grant it" if licence else "states no licence"
    return f"""---
{header.to_yaml()}
---

# Explore {domain["name"]}

Choose a user or click a history together from pictures: recommendations of several models and of popularity side by
side, similar items, and where cold items land. Made with mmsr_pt, whose source is in `mmsr_pt/`; start it with
`pip install gradio -r requirements.txt` and `python app.py`.

{trained}

## What is shown, and whose it is

{len(exhibit.items):,} titles with thumbnails{histories} come from {domain["source"]}. Its licence note:
{domain["licence"]}

This Space {stated}. Titles and pictures stay their owners'.
"""

"""`mmsr-pt publish`: a trained run onto the Hugging Face hub."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from rich import box
from rich.table import Table

from mmsr_pt.evaluation.table import wide_console
from mmsr_pt.publish import find_origin, lay_out
from mmsr_pt.upload import Target, check_licence, files_of, upload

log = logging.getLogger(__name__)


def publish_command(
    model: Path,
    repo_id: str,
    revision: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    create_pr: bool = False,
    license: str | None = None,
) -> None:
    """Publish a run on the Hugging Face hub: its model, how it was trained, its figures and a card; one commit.

    Needs a login: hf auth login, or the variable HF_TOKEN. The same bytes again make no new commit.

    Example: mmsr-pt publish --model runs/mine --repo_id user/name --private --license apache-2.0

    Args:
        model: A run directory, a checkpoint of one (runs/first/checkpoints/step_00001000) or a bundle. A run without
            a bundle yet is published as of its newest checkpoint, put together from all ranks' parts without a GPU.
        repo_id: Where to: user/name, made if it is not there.
        revision: Branch, made if it is not there; none given: main.
        private: Make the repository a private one, if it is made now.
        dry_run: Only list the files and their sizes; nothing is sent and no login needed.
        create_pr: Propose the commit as a pull request instead of making it.
        license: Of the weights, as the hub spells it (apache-2.0); none given: the card says that none was stated. The
            training data's own terms stand in the card either way.
    """
    target = Target(repo_id, revision, private, create_pr)
    check_licence(license)
    origin = find_origin(model)
    with tempfile.TemporaryDirectory(prefix="mmsr-pt-publish-") as scratch:
        directory = Path(scratch)
        what = lay_out(origin, directory, repo_id, license)
        wide_console().print(_table(directory, f"{what}, for {repo_id}"))
        if dry_run:
            log.info("nothing was sent (--dry_run)")
            return
        uploaded = upload(directory, target, f"Upload {what}")
    if uploaded.is_new:
        log.info("%s %s", "proposed:" if create_pr else "published:", uploaded.url)
    else:
        log.info("%s holds these very bytes: no new commit (%s)", repo_id, uploaded.url)


def _table(directory: Path, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("file", no_wrap=True)
    table.add_column("bytes", justify="right")
    sizes = {name: path.stat().st_size for name, path in files_of(directory).items()}
    for name, size in sizes.items():
        table.add_row(name, f"{size:,}")
    table.add_section()
    table.add_row(f"{len(sizes)} files", f"{sum(sizes.values()):,}")
    return table

"""`mmsr-pt publish`: a trained run onto the Hugging Face hub."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from rich import box
from rich.table import Table

from mmsr_pt.cli.common import open_plain_model
from mmsr_pt.evaluation.table import wide_console
from mmsr_pt.publish import find_origin, lay_out
from mmsr_pt.publish_index import lay_out_index
from mmsr_pt.upload import Target, check_licence, files_of, upload

log = logging.getLogger(__name__)


def publish_command(
    model: str,
    repo_id: str,
    index: Path | None = None,
    revision: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    create_pr: bool = False,
    license: str | None = None,
) -> None:
    """Publish a run on the Hugging Face hub: its model, how it was trained, its figures and a card; one commit.

    Needs a login: hf auth login, or the variable HF_TOKEN. The same bytes again make no new commit.

    Args:
        model: A run directory, a checkpoint of one (runs/first/checkpoints/step_00001000) or a bundle. A run without
            a bundle yet is published as of its newest checkpoint, put together from all ranks' parts without a GPU.
        repo_id: Where to: user/name, made if it is not there.
        index: In place of the model what mmsr-pt encode made of a catalogue with it, as a dataset. --model may be a hub
            id then, which the dataset's card names.
        revision: Branch, made if it is not there; none given: main.
        private: Make the repository a private one, if it is made now.
        dry_run: Only list the files and their sizes; nothing is sent and no login needed.
        create_pr: Propose the commit as a pull request instead of making it.
        license: Of the weights, as the hub spells it (apache-2.0); none given: the card says that none was stated. The
            training data's own terms stand in the card either way.
    """
    target = Target(repo_id, revision, private, create_pr, "model" if index is None else "dataset")
    check_licence(license)
    with tempfile.TemporaryDirectory(prefix="mmsr-pt-publish-") as scratch:
        directory = Path(scratch)
        if index is None:
            what = lay_out(find_origin(Path(model)), directory, repo_id, license)
        else:
            opened = open_plain_model(model)
            what = lay_out_index(opened.load_index(index), opened, model, directory, repo_id, license)
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

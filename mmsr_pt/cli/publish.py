"""`mmsr-pt publish`: a trained run onto the Hugging Face hub, or a Space that shows what several models recommend."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from mmsr_pt.cli.common import open_plain_model, require
from mmsr_pt.cli.explore import check_exhibit_flags, explorer_app, open_exhibit
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.table import wide_console
from mmsr_pt.explore.space import lay_out_space
from mmsr_pt.hub.publish import find_origin, lay_out
from mmsr_pt.hub.publish_index import lay_out_index
from mmsr_pt.hub.upload import RepoType, Target, check_licence, files_of, upload

log = logging.getLogger(__name__)


def publish_command(
    model: tuple[str, ...],
    repo_id: str,
    index: Path | None = None,
    revision: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    create_pr: bool = False,
    license: str | None = None,
    space: bool = False,
    data: Path | None = None,
    users: int | None = None,
) -> None:
    """Publish a run on the Hugging Face hub: its model, how it was trained, its figures and a card; one commit.

    With --space and --data: a Space, on which everybody can try the models out, as mmsr-pt explore does here.
    Needs a login: hf auth login, or the variable HF_TOKEN. The same bytes again make no new commit.

    Example: mmsr-pt publish --model runs/mine --repo_id user/name --private --license apache-2.0

    Args:
        model: A run directory, a checkpoint of one (runs/first/checkpoints/step_00001000) or a bundle. A run without
            a bundle yet is published as of its newest checkpoint, put together from all ranks' parts without a GPU.
            With --space: one or several run directories, bundles or hub ids.
        repo_id: Where to: user/name, made if it is not there.
        index: In place of the model what mmsr-pt encode made of a catalogue with it, as a dataset. --model may be a hub
            id then, which the dataset's card names.
        revision: Branch, made if it is not there; none given: main.
        private: Make the repository a private one, if it is made now.
        dry_run: Only list the files and their sizes; nothing is sent and no login needed.
        create_pr: Propose the commit as a pull request instead of making it.
        license: Of the weights, as the hub spells it (apache-2.0); none given: the card says that none was stated. The
            training data's own terms stand in the card either way.
        space: Publish a Space with the explorer. It shows everybody the titles and thumbnails of --data.
        data: With --space, the domain directory whose items are recommended.
        users: With --space, how many users' histories (200 unless told) it shows too, without their ids; 0: none.
    """
    check_licence(license)
    require(space or len(model) == 1, f"--model names {len(model)} models: name one, or publish a --space of several")
    require(space or (data is None and users is None), "--data and --users say what a Space shows: add --space")
    require(not space or data is not None, "--space shows the items of a domain: give --data DOMAIN too")
    require(not space or index is None, "--space and --index make two repositories: publish one after the other")
    kind: RepoType = "space" if space else "model" if index is None else "dataset"
    target = Target(repo_id, revision, private, create_pr, kind)
    with tempfile.TemporaryDirectory(prefix="mmsr-pt-publish-") as scratch:
        directory = Path(scratch)
        if data is not None:
            what = _lay_out_space(model, data, 200 if users is None else users, directory, license)
        elif index is not None:
            # which refuses what another model made
            catalogue = open_plain_model(model[0]).load_index(index)
            what = lay_out_index(catalogue, model[0], directory, repo_id, license)
        else:
            what = lay_out(find_origin(Path(model[0])), directory, repo_id, license)
        wide_console().print(_table(directory, f"{what}, for {repo_id}"))
        if dry_run:
            log.info("nothing was sent (--dry_run)")
            return
        uploaded = upload(directory, target, f"Upload {what}")
    if uploaded.is_new:
        log.info("%s %s", "proposed:" if create_pr else "published:", uploaded.url)
    else:
        log.info("%s holds these very bytes: no new commit (%s)", repo_id, uploaded.url)


def _lay_out_space(model: Sequence[str], data: Path, users: int, directory: Path, licence: str | None) -> str:
    check_exhibit_flags(model, users)
    # what is missing here would be missing there
    explorer_app()
    domain = Domain.load(data)
    exhibit = open_exhibit(model, domain, users, name_users=False)
    log.warning(
        "this publishes %d titles with thumbnails and %d users' histories of %s, whose licence note is: %s",
        len(exhibit.items),
        len(exhibit.users),
        domain.name,
        domain.meta["licence"],
    )
    return lay_out_space(exhibit, directory, licence)


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

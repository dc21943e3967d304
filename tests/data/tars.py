"""A domain's tars read with the standard library alone, as somebody without this project would."""

import json
import tarfile
from pathlib import Path

from mmsr_pt.data.domain import Domain

Event = tuple[str, int]
"""Item id, time."""


def members(tar: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(tar) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def trained_events(domain: Domain) -> dict[str, list[Event]]:
    """What the train tars say of every user, read without the project's code; no user may come twice."""
    found: dict[str, list[Event]] = {}
    for tar in sorted((domain.path / "train").iterdir()):
        id_of_row = {}
        for name, data in members(tar):
            if not name.endswith(".json"):
                continue
            value = json.loads(data)
            if name.startswith("i"):
                id_of_row[value["row"]] = value["id"]
            else:
                assert value["id"] not in found
                found[value["id"]] = [(id_of_row[row], t) for row, t in zip(value["items"], value["times"])]
    return found


def held_out(domain: Domain) -> dict[str, tuple[str, str]]:
    ids = domain.items["item_id"].to_list()
    return {user: (ids[v], ids[t]) for user, v, t in domain.eval.select("user_id", "valid", "test").iter_rows()}

"""The tables of a transfer study that people read, from what stands in its results.json; percent stands only here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmsr_pt.studies.jobs import METRICS
from mmsr_pt.studies.paper import PAPER_TABLES

JUDGED_BY = "NDCG@10"
BASELINES = {"popularity": "popularity", "transitions": "item transitions"}
_ALL = "all"
_KINDS = [*BASELINES, "idsr", "scratch", "zero-shot", "transfer"]


def size_name(size: int) -> str:
    """A number of users as it stands in names; 0: all."""
    return str(size) if size else _ALL


def by_size(name: str) -> tuple[str, float]:
    """Sorts names of models and target sizes by the number of users in them."""
    kind, _, size = name.rpartition("-")
    if size == _ALL:
        return kind, float("inf")
    return (kind, float(size)) if size.isdigit() else (name, 0.0)


def by_kind(name: str) -> tuple[int, float]:
    """Sorts names of models as the rows of a table."""
    return next(number for number, kind in enumerate(_KINDS) if name.startswith(kind)), by_size(name)[1]


def title(model: str) -> str:
    """A model as people read it."""
    for kind in ("zero-shot", "transfer"):
        if model.startswith(f"{kind}-"):
            return f"{kind} from {users(model.removeprefix(f'{kind}-'))}"
    return {**BASELINES, "idsr": "IDSR"}.get(model, model)


def users(size: str) -> str:
    """A number of users as people read it."""
    return f"{int(size):,} users" if size.isdigit() else f"{size} users"


def tables(results: Mapping[str, Any]) -> str:
    """Figures of every model, transfer against scratch, and what to bear in mind.

    Args:
        results: what `TransferReport.as_dict` gives.
    """
    return (
        f"Transfer from {' + '.join(results['sources'])} to {results['target']}: percent, all "
        f"{results['test_users']:,} test users, whole catalogue. Means over seeds [95 % interval over both]; "
        f"columns: how many users of {results['target']} train.\n\n{_table(_figures(results))}\n\n"
        "Transfer against scratch of the same seeds, on the same test users: difference in points [95 % interval], and "
        f"relative to scratch.\n\n{_table(_verdicts(results))}\n\n{' '.join(_remarks(results))}\n\n{_of_the_paper()}\n"
    )


def _of_the_paper() -> str:
    """Its tables 9 and 10: the first scales the source, the second the target."""
    return "\n\n".join(
        f"The paper's table {table.number}:\n\n{table.markdown()}\n\n{table.caption()}"
        for table in (PAPER_TABLES["table9"], PAPER_TABLES["table10"])
    )


def _figures(results: Mapping[str, Any]) -> Iterator[list[str]]:
    targets, zero_shot = results["targets"], results["zero_shot"]
    yield ["", *(f"{users(size)}: {metric}" for size in targets for metric in METRICS)]
    for name in sorted({*zero_shot, *(name for rows in targets.values() for name in rows)}, key=by_kind):
        found = [zero_shot.get(name) or rows.get(name) for rows in targets.values()]
        yield [title(name), *(_figure(one, metric) for one in found for metric in METRICS)]


def _compared(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Target size, source size, and how that transfer stands against scratch."""
    for size, rows in results["targets"].items():
        for name, found in rows.items():
            if "against_scratch" in found:
                yield size, name.removeprefix("transfer-"), found["against_scratch"]


def _verdicts(results: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["target", "source", "seeds", *METRICS, f"verdict (by {JUDGED_BY})"]
    for target, source, found in _compared(results):
        differences = [_difference(found[metric]) for metric in METRICS]
        yield [users(target), users(source), str(len(found["seeds"])), *differences, found["verdict"]]


def _remarks(results: Mapping[str, Any]) -> Iterator[str]:
    seeds = [len(found["seeds"]) for _, _, found in _compared(results)]
    yield (
        "`no difference`: the interval holds 0, so none was shown; one that is too small to be seen here there may be."
    )
    if seeds:
        yield (
            f"Intervals are each row's own, not corrected for their number ({len(seeds)}): of 20 rows without any "
            "difference one is expected to look like a gain or like negative transfer."
        )
    if 1 in seeds:
        yield (
            "With one seed an interval is over users alone: what another seed would have given is not in it, and the "
            "verdict is about these two runs rather than about transfer."
        )
    unsettled = Counter(place.rpartition("/")[0] for place in results["ran_out_of_steps"])
    if unsettled:
        which = ", ".join(f"{place} ({number})" for place, number in sorted(unsettled.items()))
        yield (
            f"Validation was still rising, or had not been passed over for --patience evaluations, when the steps of "
            f"these runs were used up: {which}; longer ones (--steps, --epochs) might change a verdict."
        )


def _figure(found: Mapping[str, Any] | None, metric: str) -> str:
    if found is None:
        return ""
    told = f"{100 * found['mean'][metric]:.2f}"
    return f"{told} [{100 * found['low'][metric]:.2f}, {100 * found['high'][metric]:.2f}]" if "low" in found else told


def _difference(found: Mapping[str, Any]) -> str:
    difference, low, high = (100 * found[part] for part in ("difference", "low", "high"))
    relative = "" if found["improvement"] is None else f", {100 * found['improvement']:+.1f} %"
    return f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]{relative}"


def _table(rows: Iterator[Sequence[str]]) -> str:
    head, *others = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *others))

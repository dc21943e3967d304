"""The figures of a model card: tables that people read, and the `model-index` that the Hugging Face hub shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

MODEL = "mmsr"
"""What a run's own model is called in metrics.jsonl."""
_METRICS = ("HR@10", "HR@50", "NDCG@10", "NDCG@50", "MRR")
_IN_INDEX = ("HR@10", "NDCG@10", "MRR")
_NAMES = {MODEL: "this model", "transitions": "item transitions"}
_ASKED = {
    "test": "the last item of each user (leave-one-out, test)",
    "valid": "the last item but one of each user (leave-one-out, validation)",
    "any": "each cold item that has another before it (protocol `cold`; read the slice `held-out`)",
}
Line = Mapping[str, Any]


def figures_of(lines: Sequence[Line], step: int | None) -> list[Line]:
    """The figures of the weights of that step on test targets and cold items, and of the baselines beside them."""
    return [line for line in lines if line["event"] == "eval" and line["split"] != "valid" and line["step"] == step]


def tested_step(lines: Sequence[Line]) -> int | None:
    """The step of the weights that were tested at the end of a run, which are its bundle's; None: no test yet."""
    return next((line["step"] for line in lines if line["event"] == "eval" and line["split"] == "test"), None)


def validation_ndcg(lines: Sequence[Line], step: int | None) -> float | None:
    """NDCG@10 of the weights of that step on validation targets, mean over the domains; None: not evaluated."""
    asked = {"event": "eval", "split": "valid", "model": MODEL, "slice": "all", "step": step}
    # a step that a resumed run came by again stands there twice, the later is of the weights that are kept
    found = {line.get("domain"): line["NDCG@10"] for line in lines if asked.items() <= line.items()}
    return sum(found.values()) / len(found) if found else None


def figure_tables(lines: Sequence[Line]) -> str:
    """Markdown: a table for each domain and protocol, in percent; "" where there are no figures."""
    if not lines:
        return ""
    tables = "\n\n".join(_table(domain, split, part) for (domain, split), part in _by_question(lines).items())
    return f"""
## Figures

Percent, the whole catalogue ranked; what stands before the target is read and left out of the ranking, ties count
against the model. Cold: fewer than 10 occurrences in training; new: none; head: the 20 % that occur most; tail: others.

{tables}
"""


def model_index(lines: Sequence[Line]) -> list[EvalResult]:
    """The model's own figures, fractions, as the hub's `model-index` has them: slices `all` and `held-out`."""
    return list(_results(lines))


def _results(lines: Sequence[Line]) -> Iterator[EvalResult]:
    for (domain, split), part in _by_question(lines).items():
        wanted = "held-out" if split == "any" else "all"
        for line in part:
            if line["model"] != MODEL or line["slice"] != wanted:
                continue
            for metric in _IN_INDEX:
                yield EvalResult(
                    task_type="sequential-recommendation",
                    task_name="Sequential recommendation",
                    dataset_type=domain,
                    dataset_name=domain,
                    dataset_split="test" if split == "test" else "cold items",
                    dataset_args={
                        "protocol": line["protocol"],
                        "slice": wanted,
                        "users": line["users"],
                        "cases": line["cases"],
                    },
                    metric_type=metric.lower(),
                    metric_name=metric,
                    metric_value=round(line[metric], 6),
                )


def _by_question(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    """By domain and split, in their order; test before cold."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["split"] == "any"):
        found.setdefault((line["domain"], line["split"]), []).append(line)
    return found


def _table(domain: str, split: str, lines: Sequence[Line]) -> str:
    head = ("", "slice", *_METRICS, "users", "cases")
    rows = [
        (
            _NAMES.get(line["model"], line["model"]),
            line["slice"],
            *(f"{100 * line[metric]:.2f}" for metric in _METRICS),
            f"{line['users']:,}",
            f"{line['cases']:,}",
        )
        for line in lines
    ]
    body = "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))
    return f"{domain}, asked for {_ASKED[split]}:\n\n{body}"

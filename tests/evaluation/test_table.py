"""The table that people read."""

from io import StringIO

from rich.console import Console

from mmsr_pt.evaluation.lines import EvalLine
from mmsr_pt.evaluation.metrics import METRICS
from mmsr_pt.evaluation.table import print_results, results_table

FIGURES = {name: 0.1 + 0.01 * place for place, name in enumerate(METRICS)}


def line(model, slice_name, split="test", users=1200, cases=1200):
    return EvalLine(7, split, model, slice_name, users, cases, FIGURES, 1.25)


def shown(lines, width=120):
    console = Console(file=StringIO(), width=width)
    console.print(results_table(lines, "made up [bold]"))
    return console.file.getvalue().splitlines()


def test_models_stand_below_each_other_for_every_slice():
    printed = shown([line(model, name) for model in ("popularity", "runs/[red]a") for name in ("all", "cold")])
    assert printed[0].strip() == "made up [bold] (percent)"
    rows = [row.split() for row in printed if "1,200" in row]
    percent = [f"{10 + place:.2f}" for place in range(len(METRICS))]
    assert rows == [
        [name, "1,200", model, *percent, "1.2"] for name in ("all", "cold") for model in ("popularity", "runs/[red]a")
    ]
    blank = [place for place, row in enumerate(printed) if not row.strip()]
    assert printed.index(next(row for row in printed if row.split()[:1] == ["cold"])) - 1 in blank


def test_under_the_cold_protocol_cases_are_counted_beside_users():
    printed = shown([line("popularity", "held-out", "any", users=617, cases=1068)])
    assert printed[2].split()[:4] == ["slice", "users", "cases", "model"]
    assert ["held-out", "617", "1,068", "popularity"] in [row.split()[:4] for row in printed]


def test_a_long_name_takes_two_lines_and_no_figure_is_lost():
    printed = shown([line("movies_classic/sasrec-id/seed-0/of-the-second-study", "all")])
    assert all(len(row) <= 120 for row in printed)
    assert f"{100 * FIGURES['MRR']:.2f}" in next(row for row in printed if "all" in row.split())


def test_each_split_has_its_table_and_the_test_comes_last(capsys):
    print_results([line("mmsr", "all", split) for split in ("test", "valid", "any")], "made up")
    printed = capsys.readouterr().out
    places = [printed.index(f"made up, {what}") for what in ("cold items", "valid, whole", "test, whole")]
    assert places == sorted(places)

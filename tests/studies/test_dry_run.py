"""What a dry run says: which runs, what they are started with, and times that a reader can add up."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from mmsr_pt import cli
from mmsr_pt.data.domain import Domain
from mmsr_pt.flags import parse_flags
from mmsr_pt.studies.dry_run import describe
from mmsr_pt.studies.table_study import Run
from tests.pretrain.launching import ROOT, ds_config


def run_on(domain: Domain, row: str, seed: int = 0, name: str | None = None) -> Run:
    flags = ("--data", str(domain.path), "--seed", str(seed), "--fusion", row)
    return Run(row, name or domain.name, seed, flags)


def take_time(run_dir: Path, users: int, seconds: float, epochs: int = 2, of: int = 2, ended: bool = True) -> None:
    """Leaves what a run leaves that trained for `seconds`: a quarter of it in its first epoch."""
    run_dir.mkdir(parents=True)
    shares = [seconds / 4, *[seconds * 3 / 4 / (epochs - 1)] * (epochs - 1)]
    lines: list[dict[str, object]] = []
    for epoch, share in enumerate(shares, start=1):
        lines.append({"event": "train", "step": 5 * epoch, "epoch": epoch, "users_per_s": users / share})
        for part in ("all", "cold"):  # seconds are of both together
            found = {"event": "eval", "split": "valid", "model": "mmsr", "slice": part, "seconds": 3.0}
            lines.append({**found, "step": 5 * epoch})
    if ended:
        for model in ("popularity", "mmsr"):
            lines.append({"event": "eval", "split": "test", "model": model, "slice": "all", "step": 5, "seconds": 6.0})
    (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (run_dir / "config.json").write_text(json.dumps({"run": {"steps": None, "epochs": of}}))


def test_nothing_is_known_before_the_first_run(tmp_path: Path, small_domain: Domain) -> None:
    run = run_on(small_domain, "gate")
    lines = describe([run], tmp_path).splitlines()
    run_dir = tmp_path / small_domain.name / "gate" / "seed-0"
    assert lines[:2] == [f"to do     gate on {small_domain.name}, seed 0 (time unknown)", f"          {run_dir}"]
    words = shlex.split(lines[2])
    assert (words[0], Path(words[1])) == (sys.executable, ROOT / "pretrain" / "run.py")
    config = parse_flags(words[2:])
    assert (config.run.run_dir, config.data.data, config.model.fusion) == (run_dir, (small_domain.path,), "gate")
    assert lines[-1] == "finished: 0 of 1; how long the others take is unknown: the first run will tell"


def test_the_nearest_relation_gives_the_time(tmp_path: Path, small_domain: Domain) -> None:
    users = small_domain.num_users
    runs = [run_on(small_domain, "gate", seed) for seed in range(3)] + [run_on(small_domain, "sum")]
    # training, two validations, the test of two models
    take_time(runs[0].directory(tmp_path), users, 100.0)
    take_time(runs[1].directory(tmp_path), users, 160.0)
    first, second = 100 + 2 * 3 + 2 * 6, 160 + 2 * 3 + 2 * 6
    told = [line for line in describe(runs, tmp_path).splitlines() if line and line[0] != " "]
    mean = f"{(first + second) / 2 / 60:.1f} min"
    name = small_domain.name
    assert told == [
        f"finished  gate on {name}, seed 0 ({first / 60:.1f} min)",
        f"finished  gate on {name}, seed 1 ({second / 60:.1f} min)",
        f"to do     gate on {name}, seed 2 (about {mean}, as its other seeds)",
        f"to do     sum on {name}, seed 0 (about {mean}, roughly: as other rows, which cost more or less)",
        f"finished: 2 of 4; about {(first + second) / 60:.1f} min for the others, by what runs took so far "
        "to train and to evaluate (loading, caches and checkpoints come on top)",
    ]


def test_a_domain_of_twice_the_users_takes_twice_the_time(
    tmp_path: Path, small_domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, other = run_on(small_domain, "gate"), run_on(small_domain, "gate", name="large")
    users = {"large": 2 * small_domain.num_users}
    take_time(done.directory(tmp_path), small_domain.num_users, 100.0)
    monkeypatch.setattr("mmsr_pt.studies.dry_run._users", lambda flags: users.get(flags[1], small_domain.num_users))
    other = Run("gate", "large", 0, ("--data", "large"))
    assert f"large, seed 0 (about {2 * 118 / 60:.1f} min, as this row elsewhere" in describe([done, other], tmp_path)
    other = Run("sum", "large", 0, ("--data", "large"))
    assert f"(about {2 * 118 / 60:.1f} min, roughly: as other rows elsewhere" in describe([done, other], tmp_path)


def test_a_run_that_was_broken_off_is_judged_by_its_own_pace(tmp_path: Path, small_domain: Domain) -> None:
    run = run_on(small_domain, "gate")
    run_dir = run.directory(tmp_path)
    take_time(run_dir, small_domain.num_users, 400.0, epochs=4, of=10, ended=False)
    whole = (400 + 4 * 3) / 4 * 10
    told = describe([run], tmp_path)
    assert f"to do     gate on {small_domain.name}, seed 0 (about {whole / 60:.1f} min, at its own pace" in told
    assert "--resume" not in told
    (run_dir / "checkpoints" / "latest").mkdir(parents=True)
    told = describe([run], tmp_path)
    assert f"begun     gate on {small_domain.name}, seed 0 (about {whole * 6 / 10 / 60:.1f} min, at its own" in told
    assert told.splitlines()[2].endswith(" --resume")
    # what it has shown so far counts for others, too
    told = describe([run, run_on(small_domain, "gate", seed=1)], tmp_path)
    assert f"seed 1 (about {whole / 60:.1f} min, as its other seeds)" in told


def test_a_domain_that_is_still_to_be_made_is_unknown(tmp_path: Path, small_domain: Domain) -> None:
    done, other = run_on(small_domain, "gate"), Run("gate", "later", 0, ("--data", str(tmp_path / "later")))
    take_time(done.directory(tmp_path), small_domain.num_users, 100.0)
    told = describe([done, other], tmp_path)
    assert "later, seed 0 (time unknown)" in told
    assert describe([done], tmp_path).endswith("finished: 1 of 1; nothing is left to do")


def test_the_command_writes_nothing_and_says_what_cannot_be(
    tmp_path: Path, small_domain: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ds_config(tmp_path / "ds_config.json")
    out = tmp_path / "out"
    words = ["study", "table3", "--data", str(small_domain.path), "--ds_config", str(config), "--dry_run"]
    cli.main([*words, "--out", str(out), "--seeds", "2"])
    said = capsys.readouterr().out
    assert said.count("to do     ") == 24
    assert said.count("pretrain/run.py") == 24
    assert not out.exists()
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit):
        cli.main([*words, "--out", str(out)])
    assert "holds something else" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]

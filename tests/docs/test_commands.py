"""Every command of README and documentation is one that today's programs take, without running it; see test_run.py."""

import argparse
import dataclasses
import inspect
import re
import tomllib
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import pytest
import torch.distributed.run
import tyro
from deepspeed.launcher import runner

from benchmarks import __main__ as benchmarks_main
from benchmarks import base_models
from benchmarks.rows import ROWS
from mmsr_pt import cli
from mmsr_pt.assembly import check_text_name
from mmsr_pt.cli import study as study_module
from mmsr_pt.config import (
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    TransferConfig,
)
from mmsr_pt.data.shards.command import parse_command
from mmsr_pt.data.sources import SOURCES
from mmsr_pt.flags import parse_flags
from mmsr_pt.models.fusion import fusions
from mmsr_pt.models.sequence import sequence_encoders
from mmsr_pt.presets import TABLES
from mmsr_pt.studies.table_study import study
from mmsr_pt.training.ds_config import read_ds_config
from tests.docs.pages import ROOT, blocks, inline_code, page_names
from tests.docs.read_commands import Command, all_commands
from tests.docs.stage import NEEDS
from tests.docs.substitutions import LEFT_OUT, NOT_RUN, SMALL, TEXT, not_run

COMMANDS: dict[str, Callable[..., None]] = {
    name.removesuffix("_command"): value for name, value in vars(cli).items() if name.endswith("_command")
}
"""Of mmsr-pt, by name."""
VISION_PREFIXES = ("tiny", "none", "hf:", "timm:", "stem:hf:", "region")


def check_training(words: Sequence[str]) -> None:
    """Flags of pretrain/run.py or finetune/run.py, which comes first."""
    script, *flags = words
    config = parse_flags(list(flags), FinetuneConfig if script == "finetune/run.py" else PretrainConfig)
    check_model(config.model)
    read_ds_config(ROOT / config.run.ds_config, 1)
    assert script != "finetune/run.py" or "--init" in flags


def check_model(model: ModelConfig) -> None:
    if model.vlp == "none" and model.reads_content:
        check_text_name(model.text)
    assert model.vision.startswith(VISION_PREFIXES), model.vision
    _ = fusions[model.fusion_name], sequence_encoders[model.sequence]


class Parsed:
    """`mmsr-pt` with commands that only take note of what they are asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: dict[str, Any] = {}
        app = tyro.extras.SubcommandApp()
        for name, command in COMMANDS.items():
            app.command(name=name)(self._noting(command))
        monkeypatch.setattr(cli, "app", app)
        monkeypatch.setattr(cli, "cache_command", lambda config: check_model(config.model))
        monkeypatch.setattr(study_module, "transfer_command", self._noting(study_module.transfer_command))

    def _noting(self, command: Callable[..., None]) -> Callable[..., None]:
        def noted(**asked: Any) -> None:
            self.asked = asked

        hints = get_type_hints(command, include_extras=True)
        parameters = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values()]
        noted.__name__, noted.__doc__, noted.__annotations__ = command.__name__, command.__doc__, hints
        noted.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return noted

    def check(self, words: Sequence[str]) -> None:
        if words == ("--help",):
            return
        cli.main(list(words))
        if words[0] == "study":
            for name in ("flags", "pretrain_flags", "finetune_flags", "idsr_flags"):
                parse_flags((self.asked.get(name) or "").split(), FinetuneConfig)
            if self.asked.get("table") in TABLES:
                assert set(self.asked["rows"]) <= set(TABLES[self.asked["table"]].all_rows)
            else:
                assert words[1] in ("transfer", "figure4", "figure6", "figure8", "figure9")


def check_python(words: Sequence[str]) -> None:
    first = words[0]
    if first == "-c":
        compile(words[1], "-c", "exec")
    elif first in ("pretrain/run.py", "finetune/run.py"):
        check_training(words)
    elif first == "shards/build.py":
        parse_command(list(words[1:]))
    elif words[:2] == ("-m", "benchmarks"):
        asked = benchmarks_main._parser().parse_args(list(words[2:]))
        assert set(asked.names) <= {*ROWS, *benchmarks_main._STUDIES}
    elif words[:2] == ("-m", "benchmarks.base_models"):
        assert set(tyro.cli(base_models.Settings, args=words[2:], use_underscores=True).models) <= set(
            base_models.MODELS
        )
    else:
        assert words[:2] == ("-m", "venv"), words


def check_torchrun(words: Sequence[str]) -> None:
    asked = torch.distributed.run.get_args_parser().parse_args(list(words))
    if asked.module:
        assert asked.training_script == "mmsr_pt.cli"
    else:
        check_training([asked.training_script, *asked.training_script_args])


def check_deepspeed(words: Sequence[str]) -> None:
    asked = runner.parse_args(list(words))
    check_training([asked.user_script, *asked.user_args])


def check_make(words: Sequence[str]) -> None:
    assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(words) == 1 or words[1].startswith("BENCH=")
    if len(words) == 2:
        check_python(("-m", "benchmarks", *words[1].removeprefix("BENCH=").split()))


def check_pip(words: Sequence[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[0] == "install"
    for extra in re.findall(r"\.\[(.*)\]", " ".join(words)):
        assert set(extra.split(",")) <= set(extras)


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "python": check_python,
    "torchrun": check_torchrun,
    "deepspeed": check_deepspeed,
    "make": check_make,
    "pip": check_pip,
    "V/bin/pip": lambda words: None,
    "hf": lambda words: None,
    "tensorboard": lambda words: None,
    "curl": lambda words: None,  # run in test_run.py
    "sbatch": lambda words: None,  # likewise, with what the script starts
}


@pytest.mark.parametrize("page", page_names())
def test_programs_take_every_command_of_a_page(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = Parsed(monkeypatch)
    wrong = []
    for command in all_commands():
        if command.block.page == page:
            program, *words = command.words
            try:
                (parsed.check if program == "mmsr-pt" else CHECKS[program])(tuple(words))
            except (Exception, SystemExit) as error:
                wrong.append(f"{command}: {type(error).__name__} {error}")
    assert wrong == []


def test_a_wrong_flag_a_wrong_row_and_an_unknown_source_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = Parsed(monkeypatch)
    for words in (["evaluate", "--modle", "a"], ["study", "table3", "--rows", "gat"], ["study", "table99"]):
        with pytest.raises((Exception, SystemExit)):
            parsed.check(words)
    for check, given in (
        (check_deepspeed, ["--num_gpus", "2", "pretrain/run.py", "--epoch", "3"]),
        (check_deepspeed, ["finetune/run.py", "--data", "data/mine"]),
        (check_python, ("shards/build.py", "hmm", "--root", "raw")),
        (check_python, ("pretrain/run.py", "--fusion", "sums")),
        (check_python, ("pretrain/run.py", "--ds_config", "ds_configs/zero9.json")),
        (check_make, ["tests"]),
        (check_pip, ["install", "--editable", ".[serving]"]),
    ):
        with pytest.raises((Exception, SystemExit)):
            check(given)  # type: ignore[operator]


def test_what_is_not_run_stands_in_the_pages_with_a_reason() -> None:
    used = {not_run(command.words) for command in all_commands()}
    assert used - {None} == set(NOT_RUN)
    assert all(len(reason) > 20 for reason in NOT_RUN.values())


def test_every_substitution_is_still_of_use() -> None:
    pages = "".join((ROOT / page).read_text() for page in page_names())
    assert [printed for printed, _ in TEXT if printed not in pages] == []
    flags = {word for command in all_commands() for word in command.words}
    assert [name for name in LEFT_OUT if f"--{name}" not in flags and "--" + name not in pages] == []
    known = {field.name for kind in (RunConfig, DataConfig, ModelConfig) for field in dataclasses.fields(kind)}
    assert set(SMALL) | set(LEFT_OUT) <= known
    assert set(NEEDS) <= set(page_names())


def known_flags() -> set[str]:
    """Of all programs of the repository, and of the launchers."""
    kinds = (RunConfig, DataConfig, ModelConfig, OptimConfig, TransferConfig)
    found = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    for command in (*COMMANDS.values(), study_module.transfer_command):
        found |= set(inspect.signature(command).parameters)
    for options in (benchmarks_main._parser(), torch.distributed.run.get_args_parser()):
        found |= names_of(options)
    found |= set(vars(runner.parse_args(["pretrain/run.py"])))
    return found | build_flags() | {"help"}


def names_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option.lstrip("-").replace("-", "_") for action in parser._actions for option in action.option_strings}


def build_flags() -> set[str]:
    """Of shards/build.py, by what its sources and options are made of."""

    def fields(kind: Any) -> set[str]:
        found: set[str] = set()
        for field in dataclasses.fields(kind):
            default = field.default_factory if field.default_factory is not dataclasses.MISSING else None
            inner = default if dataclasses.is_dataclass(default) else None
            found |= fields(inner) if inner is not None else {field.name}
        return found

    from mmsr_pt.data.shards.build import BuildOptions

    return {"out", *fields(BuildOptions), *(name for source in SOURCES for name in fields(SOURCES[source]))}


@pytest.mark.parametrize("page", page_names())
def test_flags_and_files_named_in_the_text_are_there(page: str) -> None:
    known = known_flags()
    wrong = []
    for code in inline_code(page):
        if code.startswith(("torchrun", "srun", "deepspeed --launcher", "pip ", "pytest ", "#SBATCH", "timeout")):
            continue
        wrong += [code for flag in re.findall(r"(?<![\w-])--([a-z]\w*)", code) if flag not in known]
        command = re.match(r"mmsr-pt (\w+)", code)
        if command and command[1] not in {*COMMANDS, "TABLE", "COMMAND"}:
            wrong.append(code)
        if re.fullmatch(r"(mmsr_pt|benchmarks|ds_configs|tests|shards|pretrain|finetune)/[\w/.]*", code) and not (
            (ROOT / code).exists() or code.endswith("/growth.png")
        ):
            wrong.append(code)
    assert wrong == []


def test_commands_stand_in_blocks_that_are_tested() -> None:
    """A command in a fence without a language, or of another, would be read by nobody."""
    programs = re.compile(r"^\s*(\$ )?(mmsr-pt|deepspeed|python|torchrun|make|pip|hf|sbatch|srun) ", re.MULTILINE)
    untested = [
        str(block)
        for page in page_names()
        for block in blocks(page)
        if block.language not in ("bash", "python") and programs.search(block.text)
    ]
    assert untested == []


def test_studies_take_a_table_of_the_papers() -> None:
    """`check` looks rows up by the table's name; a name that no study knows must be refused by the study itself."""
    with pytest.raises(Exception, match="table99"):
        study("table99", (), (), 1, None, ROOT / "ds_configs/zero2.json", [], 0, True)


def test_a_command_knows_where_it_stands() -> None:
    command = all_commands()[0]
    assert isinstance(command, Command)
    assert (ROOT / command.block.page).read_text().splitlines()[command.block.line - 1].startswith("make demo")

"""Flags, presets and what a configuration refuses."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmsr_pt.config import DataConfig, ModelConfig, OptimConfig, PretrainConfig, RunConfig, from_dict, to_json
from mmsr_pt.flags import parse_flags, preset
from mmsr_pt.log import UserError
from mmsr_pt.presets import PRESETS

PARTS = (RunConfig, DataConfig, ModelConfig, OptimConfig)


def test_no_flags_are_the_defaults() -> None:
    assert parse_flags([]) == PretrainConfig()


def test_flags_reach_their_part_by_bare_name_and_with_hyphens_too() -> None:
    words = "--steps 7 --data a b --weights 1 0.5 --width 64 --text-lr 3e-5 --resume --run_dir r --loss=bce"
    config = parse_flags(words.split())
    assert (config.run.steps, config.run.resume, config.run.run_dir) == (7, True, Path("r"))
    assert (config.data.data, config.data.weights) == ((Path("a"), Path("b")), (1.0, 0.5))
    assert (config.model.width, config.optim.text_lr, config.optim.loss) == (64, 3e-5, "bce")


def test_no_two_parts_share_a_name() -> None:
    names = [field.name for part in PARTS for field in dataclasses.fields(part)]
    assert len(names) == len(set(names)), "flags have no prefix"


@pytest.mark.parametrize("part", PARTS)
def test_every_field_says_what_it_means_and_so_does_its_flag(part: type, capsys: pytest.CaptureFixture[str]) -> None:
    source = inspect.getsource(part)
    with pytest.raises(SystemExit) as ended:
        parse_flags(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(part):
        assert re.search(rf'^    {field.name}: .*\n    """\w', source, re.MULTILINE), f"{field.name} has no docstring"
        assert f"--{field.name}" in shown


@pytest.mark.parametrize("words", [["--preset", "paper"], ["--preset=paper"]])
def test_a_flag_beats_its_preset_wherever_it_stands(words: list[str]) -> None:
    config = parse_flags(["--lr", "0.5", *words, "--width", "48", "--fusion_heads", "4"])
    assert (config.optim.lr, config.model.width) == (0.5, 48)
    assert (config.optim.loss, config.model.score, config.run.epochs) == ("bce", "dot", 150)
    assert config.run.preset == "paper"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_changes_what_it_names_and_nothing_else(name: str) -> None:
    config = parse_flags(["--preset", name])
    assert config == preset(name)
    values, defaults = (dataclasses.asdict(config) for config in (config, PretrainConfig()))
    changed = {k: v for part in values for k, v in values[part].items() if v != defaults[part][k]}
    changed.pop("preset", None)
    if "vlp" in changed:  # reads titles, and pictures where the preset does not say who does
        assert changed.pop("text") == changed["vlp"]
        assert changed.pop("vision") == PRESETS[name].get("vision", changed["vlp"])
    assert changed.items() <= PRESETS[name].items()


def test_a_presets_value_does_not_contradict_the_flag_that_replaces_it() -> None:
    model = parse_flags(["--preset", "paper-table6-vilt", "--vlp", "hf:/a/copy"]).model
    assert (model.vlp, model.text, model.vision, model.title_tokens) == (*3 * ["hf:/a/copy"], 40)
    # two heads do not divide 33, which is only so for a moment
    assert parse_flags(["--width", "33", "--sequence_heads", "3", "--fusion_heads", "3"]).model.width == 33


def test_the_paper_preset_is_the_papers_setting() -> None:
    config = preset("paper")
    assert (config.optim.loss, config.optim.lr, config.optim.text_lr, config.optim.vision_lr) == ("bce", *3 * [1e-4])
    assert (config.optim.weight_decay, config.optim.encoder_weight_decay) == (0.1, 0.0)
    assert (config.model.width, config.model.score, config.model.text_policy) == (768, "dot", "top:2")


BAD: list[tuple[type, dict[str, Any], str]] = [
    (ModelConfig, {"text": "none", "vision": "none"}, "--text none and --vision none leave an item without content"),
    (ModelConfig, {"width": 30}, "--width 30 must be divisible by --sequence_heads 2 and --fusion_heads 4"),
    (ModelConfig, {"dropout": 1.0}, r"--dropout 1.0 must lie in \[0, 1\)"),
    (ModelConfig, {"max_history": 0}, "--max_history 0 must be at least 1"),
    (DataConfig, {"data": ("a",), "weights": (1.0, 2.0)}, "--weights has 2 numbers for 1 domains"),
    (DataConfig, {"data": ("a",), "weights": (0.0,)}, "must all be above 0"),
    (DataConfig, {"num_workers": 6}, "--num_workers 6 must be -1 .choose., 0 .none. or a power of two"),
    (DataConfig, {"num_workers": -2}, "--num_workers -2 must be"),
    (DataConfig, {"shuffle_buffer": 0}, "--shuffle_buffer 0 must be at least 1"),
    (DataConfig, {"pool_size": 0}, "--pool_size 0 must be at least 1"),
    (OptimConfig, {"lr": 0.0}, "--lr 0.0 must be above 0"),
    (OptimConfig, {"text_lr": float("nan")}, "--text_lr nan must be above 0"),
    (OptimConfig, {"final_lr": 1.5}, r"--final_lr 1.5 must lie in \[0, 1\]"),
    (RunConfig, {"steps": 0}, "--steps 0 must be at least 1"),
    (RunConfig, {"patience": -1}, "--patience -1 must not be negative"),
    (OptimConfig, {"bank_size": -1}, "--bank_size -1 must not be negative"),
    (OptimConfig, {"bank_size": 8, "loss": "bce"}, "--bank_size 8 needs --loss softmax"),
    (OptimConfig, {"bank_refresh": 8}, "--bank_refresh 8 needs --bank_size"),
    (RunConfig, {"keep_checkpoints": 0}, "--keep_checkpoints 0 must be at least 1"),
    (RunConfig, {"resume": True}, "--resume needs --run_dir"),
]


@pytest.mark.parametrize(("part", "values", "sentence"), BAD)
def test_values_out_of_range_are_refused_by_the_name_of_their_flag(
    part: type, values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        part(**values)


def test_an_id_model_needs_no_tower() -> None:
    assert ModelConfig(item="id", text="none", vision="none").item == "id"


@pytest.mark.parametrize("value", [-1, 0, 1, 2, 8])
def test_numbers_of_workers_that_divide_the_lanes_are_allowed(value: int) -> None:
    assert DataConfig(num_workers=value).num_workers == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--stepz 3", "unknown flag --stepz: did you mean --steps? --help lists all flags"),
        ("--text_Lr=3", "unknown flag --text_Lr: did you mean --text_lr? --help lists all flags"),
        ("--qqqq", "unknown flag --qqqq: --help lists all flags"),
    ],
)
def test_unknown_names_come_with_the_nearest(words: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_flags(words.split())
    assert str(error.value) == said


@pytest.mark.parametrize("words", ["--steps x", "--steps", "--loss x", "--seed 1.5", "x", "--weights x", "--resume=x"])
def test_what_the_parser_says_is_one_plain_sentence(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as error:
        parse_flags(words.split())
    said = str(error.value)
    assert capsys.readouterr().err == ""
    assert words.partition("=")[0].split()[0] in said or "x" in said
    assert "--help" in said
    assert not re.search("[\n│╭╰─]|Error parsing (run|data|model|optim)", said)


def test_json_and_back() -> None:
    config = preset("paper")
    values = json.loads(to_json(config))
    assert from_dict(ModelConfig, values["model"], "config.json") == config.model
    assert from_dict(OptimConfig, values["optim"], "config.json") == config.optim
    assert values["run"]["ds_config"] == "ds_configs/zero2.json"


def test_a_field_nobody_knows_is_named_with_its_file() -> None:
    with pytest.raises(UserError, match=r"config.json: unknown setting 'widht'.*Did you mean 'width'\?"):
        from_dict(ModelConfig, {"widht": 3}, "config.json")


def test_scores_follow_what_an_item_is_unless_given() -> None:
    assert parse_flags([]).model.score_kind == "scaled"
    assert parse_flags(["--item", "id"]).model.score_kind == "cosine"
    assert parse_flags(["--item", "id", "--score", "dot"]).model.score_kind == "dot"
    assert parse_flags(["--item", "id", "--preset", "paper"]).model.score_kind == "dot"
    assert parse_flags(["--score", "cosine"]).model.score_kind == "cosine"
    assert parse_flags(["--item", "both", "--sequence", "fdsa"]).model.score_kind == "cosine"
    assert parse_flags(["--item", "both", "--sequence", "carca"]).model.score_kind == "dot"
    assert parse_flags(["--item", "codes", "--text", "hf:a"]).model.score_kind == "cosine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--item both", "--item both does not go with --sequence sasrec: --item both belongs to --sequence fdsa or"),
        ("--sequence fdsa", "--item content does not go with --sequence fdsa"),
        ("--item id --sequence carca", "--item id does not go with --sequence carca"),
        ("--item both --sequence carca --score cosine", "--sequence carca .* knows no --score cosine: leave it out"),
        ("--item both --sequence fdsa --text none --vision none", "leave an item without content"),
        ("--item both --sequence fdsa --naive --loss bce", "--naive gives padding no learned vector"),
        ("--item codes --text none", "--item codes are .* not of --text none, --vision tiny: give --text hf:NAME"),
        ("--item codes --text hf:a --vision hf:b", "not of --text hf:a, --vision hf:b"),
        ("--item codes --vlp hf:a", "and no other tower"),
        ("--item codes --text hf:a --tune full", "keeps its text tower frozen.*leave full out"),
        ("--item codes --text hf:a --num_codes 0", "--num_codes 0 must be at least 1"),
    ],
)
def test_what_an_item_is_must_go_with_who_reads_it(words: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_flags(words.split())


def test_codes_are_read_from_titles_alone() -> None:
    assert ModelConfig(item="codes", text="hf:a").vision == "none"


def test_one_flag_tunes_both_towers_and_a_towers_own_flag_wins() -> None:
    def policies(words: str) -> tuple[str, str]:
        model = parse_flags(words.split()).model
        stored = from_dict(ModelConfig, json.loads(to_json(model)), "config.json")
        assert stored == model
        return stored.text_policy, stored.vision_policy

    assert policies("") == ("top:2", "top:2")
    assert policies("--tune side") == ("side", "side")
    assert policies("--vision_tune top:2 --tune side") == ("side", "top:2")
    assert policies("--text_tune frozen") == ("frozen", "top:2")


def test_a_bundle_from_before_the_common_flag_keeps_its_policies() -> None:
    values = dataclasses.asdict(ModelConfig()) | {"text_tune": "top:3", "vision_tune": "frozen"}
    del values["tune"]
    stored = from_dict(ModelConfig, values, "config.json")
    assert (stored.text_policy, stored.vision_policy) == ("top:3", "frozen")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--naive", "with --loss softmax: it needs --loss bce"),
        ("--naive --loss bce --cache", "leave --cache out"),
        ("--naive --loss bce --item id", "leave --naive out"),
    ],
)
def test_naive_refuses_what_the_released_code_has_not(words: str, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^--naive.*{sentence}"):
        parse_flags(words.split())

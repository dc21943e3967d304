"""What a DeepSpeed configuration may say, and the one sentence for what it may not."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmsr_pt.log import UserError
from mmsr_pt.training.ds_config import offloads_optimizer, read_ds_config, zero_stage

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))
GOOD = {"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": 2}}


def write(path: Path, config: Any) -> Path:
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_are_accepted_and_are_what_their_name_says(path: Path) -> None:
    config = read_ds_config(path, world_size=2)
    assert zero_stage(config) == int(path.stem.removeprefix("zero")[0])
    assert offloads_optimizer(config) == path.stem.endswith("offload")
    assert config["train_batch_size"] == 2 * 64
    assert config["gradient_clipping"] == 1.0


def test_there_is_one_configuration_for_each_stage_and_two_with_offload() -> None:
    assert [path.stem for path in SHIPPED] == ["zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]


def test_the_batch_is_micro_batch_times_accumulation_times_ranks(tmp_path: Path) -> None:
    config = read_ds_config(write(tmp_path / "c.json", {**GOOD, "gradient_accumulation_steps": 3}), world_size=4)
    assert config["train_batch_size"] == 8 * 3 * 4
    assert read_ds_config(write(tmp_path / "c.json", GOOD), world_size=1)["gradient_accumulation_steps"] == 1


BAD = {
    "no object": ([1], "must hold a JSON object"),
    "no json": ('{"a": 1,}', "is not JSON: .* in line 1"),
    "key twice": ('{"bf16": {}, "bf16": {}}', '"bf16" stands there 2 times'),
    "auto": ({**GOOD, "gradient_clipping": "auto"}, 'gradient_clipping is "auto"'),
    "nested auto": ({**GOOD, "bf16": {"enabled": "auto"}}, 'bf16: enabled is "auto"'),
    "auto in a list": ({**GOOD, "x": [{"y": "auto"}]}, 'x: 0: y is "auto"'),
    "optimizer": ({**GOOD, "optimizer": {"type": "AdamW"}}, '"optimizer" does not belong here: .*--lr'),
    "scheduler": ({**GOOD, "scheduler": {"type": "WarmupLR"}}, '"scheduler" does not belong here: .*--decay_from'),
    "fp16": ({**GOOD, "fp16": {"enabled": True}}, '"fp16" would need loss scaling'),
    "our flag": ({**GOOD, "lr": 0.1}, '"lr" is no DeepSpeed setting: give it as --lr'),
    "our other flag": ({**GOOD, "max_history": 3}, "give it as --max_history"),
    "no micro-batch": ({"bf16": {"enabled": True}}, 'lacks "train_micro_batch_size_per_gpu"'),
    "micro-batch 0": ({"train_micro_batch_size_per_gpu": 0}, "must be a whole number of at least 1"),
    "micro-batch text": ({"train_micro_batch_size_per_gpu": "8"}, "must be a whole number of at least 1"),
    "accumulation true": ({**GOOD, "gradient_accumulation_steps": True}, "must be a whole number of at least 1"),
    "batch": ({**GOOD, "train_batch_size": 9}, "is 9, but a micro-batch of 8 x 1 .* x 2 ranks make 16"),
    "stage 4": ({**GOOD, "zero_optimization": {"stage": 4}}, '"stage" must be 0, 1, 2 or 3'),
    "stage text": ({**GOOD, "zero_optimization": {"stage": "2"}}, '"stage" must be 0, 1, 2 or 3'),
    "zero true": ({**GOOD, "zero_optimization": True}, '"stage" must be 0, 1, 2 or 3'),
    "unmanaged": ({**GOOD, "managed_gradient_accumulation": False}, "must not be false"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_configuration_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    config, sentence = BAD[case]
    with pytest.raises(UserError, match=sentence) as error:
        read_ds_config(write(tmp_path / "given.json", config), world_size=2)
    assert "given.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"nowhere\.json does not exist: name a DeepSpeed JSON file"):
        read_ds_config(Path("nowhere.json"), world_size=1)
    (tmp_path / "ds_configs").mkdir()
    write(tmp_path / "ds_configs" / "zero2.json", GOOD)
    with pytest.raises(UserError, match=r"there are ds_configs/zero2\.json"):
        read_ds_config(Path("nowhere.json"), world_size=1)
    with pytest.raises(UserError, match="cannot be read"):
        read_ds_config(tmp_path, world_size=1)


def test_fp16_may_be_there_turned_off(tmp_path: Path) -> None:
    read_ds_config(write(tmp_path / "c.json", {**GOOD, "fp16": {"enabled": False}}), world_size=1)

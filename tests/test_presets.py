"""The paper's tables as presets: every name in them is known, and each row is what the paper says it is."""

import pytest

from mmsr_pt.config import READ_BOTH, PretrainConfig
from mmsr_pt.flags import parse_flags, preset
from mmsr_pt.log import UserError
from mmsr_pt.models.fusion import fusions
from mmsr_pt.models.sequence import sequence_encoders
from mmsr_pt.models.towers.text import check_text_name
from mmsr_pt.presets import MAE, PAPER, PRESETS, ROBERTA, SWIN, TABLES, find_preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_name_in_a_preset_is_known(name: str) -> None:
    model = preset(name).model
    assert model.fusion_name in fusions
    assert model.sequence in sequence_encoders
    check_text_name(model.text)
    assert model.vision in ("none", "tiny", "region") or model.vision.startswith(("hf:", "timm:", "stem:hf:"))
    for policy in (model.text_policy, model.vision_policy):
        assert policy in ("full", "top:2") or model.item == "codes"


def test_the_tables_hold_every_fusion_and_every_sequence_encoder() -> None:
    baselines = {preset(f"paper-table5-{row}").model for row in TABLES["table5"].rows}
    assert {row["fusion"] for row in TABLES["table3"].all_rows.values()} == set(fusions) - {"vanilla"}
    assert "vanilla" in {model.fusion_name for model in baselines}
    assert {row["sequence"] for row in TABLES["table4"].all_rows.values()} == set(sequence_encoders) - set(READ_BOTH)
    assert {model.sequence for model in baselines} >= set(READ_BOTH)
    # the paper's three
    assert {row["sequence"] for row in TABLES["table4"].rows.values()} == {"sasrec", "grurec", "nextitnet"}


@pytest.mark.parametrize("name", TABLES)
def test_rows_differ(name: str) -> None:
    presets = [PRESETS[f"paper-{name}-{row}"] for row in TABLES[name].all_rows]
    assert all(presets.count(one) == 1 for one in presets)


def test_the_best_model_is_the_one_of_table_4() -> None:
    best = preset("paper-best")
    assert (best.model.text, best.model.vision, best.model.patch_mask) == (ROBERTA, SWIN, 0.0)
    assert (best.model.fusion_name, best.model.fusion_layers, best.model.sequence) == ("merge", 1, "sasrec")
    assert PRESETS["paper-best"] == PRESETS["paper-table4-sasrec"]


def test_table_8_is_of_the_models_of_table_4_under_the_cold_protocol() -> None:
    assert TABLES["table8"].protocol == "cold"
    assert {table.protocol for name, table in TABLES.items() if name != "table8"} == {"leave-one-out"}
    rows = list(TABLES["table8"].all_rows)
    assert rows == ["sasrec-id", "sasrec-text", "sasrec-vision", "sasrec"]
    for row in rows:
        assert PRESETS[f"paper-table8-{row}"] == PRESETS[f"paper-table4-{row}"]


def model_and_rates(name: str) -> tuple[object, ...]:
    config = preset(name)
    model, optim = config.model, config.optim
    return (model.text, model.vision, model.patch_mask, model.text_policy, model.title_tokens, optim.text_lr, optim.lr)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("table2-bert+mae", ("hf:google-bert/bert-base-uncased", MAE["vision"], 0.75, "top:2", 50, 1e-4, 1e-4)),
        ("table2-roberta+resnet", (ROBERTA, "timm:resnet50.tv_in1k", 0, "top:2", 50, 1e-4, 1e-4)),
        ("table2-mae", ("none", MAE["vision"], 0.75, "top:2", 50, 1e-4, 1e-4)),
        ("table3-gate", (ROBERTA, MAE["vision"], 0.75, "top:2", 50, 1e-4, 1e-4)),
        ("table8-sasrec-vision", ("none", SWIN, 0, "top:2", 50, 1e-4, 1e-4)),
        ("table4-grurec-text", (ROBERTA, "none", 0, "top:2", 50, 1e-4, 1e-4)),
        ("table11-resnet-full", ("none", "timm:resnet50.tv_in1k", 0, "full", 50, 1e-4, 1e-4)),
        ("table12-top-5e-5-downstream-1e-4", (ROBERTA, MAE["vision"], 0.75, "top:2", 50, 5e-5, 1e-4)),
        ("table13-tokens-10-text", (ROBERTA, "none", 0.75, "top:2", 10, 1e-4, 1e-4)),
        ("table14-mask-0.5-vision", ("none", MAE["vision"], 0.5, "top:2", 50, 1e-4, 1e-4)),
        ("table14-mask-0.0", (ROBERTA, MAE["vision"], 0, "top:2", 50, 1e-4, 1e-4)),
    ],
)
def test_rows_are_what_the_paper_says(name: str, expected: tuple[object, ...]) -> None:
    assert model_and_rates(f"paper-{name}") == expected


def test_all_of_the_papers_presets_are_in_the_papers_setting() -> None:
    varied = {"lr", "text_lr", "vision_lr"}  # by table 12
    for name, setting in PRESETS.items():
        for field in PAPER.keys() - varied if name != "default" else ():
            assert setting[field] == PAPER[field], f"{name}: {field}"


def test_an_id_model_has_the_papers_scores() -> None:
    assert preset("paper-table4-sasrec-id").model.score_kind == "dot"
    assert preset("paper-table4-sasrec-id").model.item == "id"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("papr", "unknown preset 'papr'; known: default, paper, paper-best, paper-table11, .*Did you mean 'paper'"),
        ("paper-table9", "such as paper-table3-gate"),
        ("paper-table3-gat", "unknown row of --preset paper-table3-ROW: 'gat'; known: co, .*Did you mean 'gate'"),
    ],
)
def test_an_unknown_preset_is_one_sentence_without_all_rows(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        find_preset(name)
    assert len(str(error.value)) < 350


def test_no_preset_is_the_defaults() -> None:
    assert preset("default") == PretrainConfig() == parse_flags([])

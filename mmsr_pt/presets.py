"""Named settings: the paper's, and each row of its tables as what sets it apart from the others.

Plain data: `--preset paper-table3-gate` and `mmsr-pt study table3` read the same line. A new row is a new line in
TABLES. Names of fields are those of `config.py`, which refuses values that they cannot take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mmsr_pt.log import UserError
from mmsr_pt.registry import unknown_name

Setting = Mapping[str, Any]
"""Values by field name."""

ROBERTA = "hf:FacebookAI/roberta-base"
BERT = "hf:google-bert/bert-base-uncased"
ELECTRA = "hf:google/electra-base-discriminator"
SWIN = "timm:swin_base_patch4_window7_224.ms_in1k"
RESNET = "timm:resnet50.tv_in1k"
"""Its last grid: 49 vectors."""
CLIP = "hf:openai/clip-vit-base-patch32"
GROUPVIT = "hf:nvidia/groupvit-gcc-yfcc"
VISUALBERT: Setting = {"vlp": "hf:uclanlp/visualbert-vqa-coco-pre", "tokenizer": BERT}
"""Published without a tokenizer: it is BERT's."""
REGION: Setting = {"vision": "region", "cache": True}
"""Looked for once: --cache keeps them."""
MAE: Setting = {"vision": "hf:facebook/vit-mae-base", "patch_mask": 0.75}
"""Departs from the released code, which hides patches in evaluation, too: that makes item vectors random."""

ONLY_TEXT: Setting = {"vision": "none"}
ONLY_VISION: Setting = {"text": "none"}
ONLY_ID: Setting = {"item": "id", "cache": False}
CODES: Setting = {"item": "codes", "text_tune": "frozen", **ONLY_TEXT}
"""Of VQRec, whose text tower never trains."""

BEST_TOWERS: Setting = {"text": ROBERTA, "vision": SWIN}
"""Of tables 4 and 8, the second of which names none but compares itself with the first."""

# sections 4.2 and 4.4, appendix B
PAPER: Setting = {
    "width": 768,
    "sequence_heads": 2,
    "fusion_heads": 12,
    "score": "dot",
    "attention_dropout": 0.1,
    "loss": "bce",
    "lr": 1e-4,
    "text_lr": 1e-4,
    "vision_lr": 1e-4,
    "joint_lr": 1e-4,
    "weight_decay": 0.1,
    "epochs": 150,
    "patience": 0,
}


@dataclass(frozen=True)
class Table:
    """One table of the paper: models that differ in one thing."""

    about: str
    """What differs."""
    rows: Mapping[str, Setting]
    """The paper's rows: what each says of the thing that differs, and no more."""
    ours: Mapping[str, Setting] = field(default_factory=dict)
    """Rows that the paper does not have."""
    common: Setting = field(default_factory=dict)
    """What the paper's rows share beyond PAPER; a study leaves it to its user."""
    protocol: Literal["leave-one-out", "cold"] = "leave-one-out"
    """What a study of it reports of each run, which is tested under both."""

    @property
    def all_rows(self) -> dict[str, Setting]:
        """The paper's rows, then ours."""
        return {**self.rows, **self.ours}


def _table4(sequence: str) -> dict[str, Setting]:
    """IDSR, MMSR-T, MMSR-V and MMSR of one sequence encoder."""
    only = {"-id": ONLY_ID, "-text": ONLY_TEXT, "-vision": ONLY_VISION, "": {}}
    return {f"{sequence}{suffix}": {"sequence": sequence, **setting} for suffix, setting in only.items()}


TABLES: dict[str, Table] = {
    "table2": Table(
        "text and vision towers",
        {
            "roberta": {"text": ROBERTA, **ONLY_TEXT},
            "electra": {"text": ELECTRA, **ONLY_TEXT},
            "bert": {"text": BERT, **ONLY_TEXT},
            "resnet": {"vision": RESNET, **ONLY_VISION},
            "mae": {**MAE, **ONLY_VISION},
            "swin": {"vision": SWIN, **ONLY_VISION},
            "roberta+resnet": {"text": ROBERTA, "vision": RESNET},
            "roberta+swin": {"text": ROBERTA, "vision": SWIN},
            "roberta+mae": {"text": ROBERTA, **MAE},
            "electra+mae": {"text": ELECTRA, **MAE},
            "bert+mae": {"text": BERT, **MAE},
        },
    ),
    "table3": Table(
        "fusion",
        {
            "gate": {"fusion": "gate"},
            "film": {"fusion": "film"},
            "sum": {"fusion": "sum"},
            "concat": {"fusion": "concat"},
            "gate+dnn": {"fusion": "gate+dnn"},
            "film+dnn": {"fusion": "film+dnn"},
            "sum+dnn": {"fusion": "sum+dnn"},
            "concat+dnn": {"fusion": "concat+dnn"},
            "co": {"fusion": "co", "fusion_layers": 1},
            "merge-1": {"fusion": "merge", "fusion_layers": 1},
            "merge-2": {"fusion": "merge", "fusion_layers": 2},
            "merge-4": {"fusion": "merge", "fusion_layers": 4},
        },
        common={"text": ROBERTA, **MAE},
    ),
    "table4": Table(
        "sequence encoder; IDSR, titles, pictures, both",
        {**_table4("sasrec"), **_table4("grurec"), **_table4("nextitnet")},
        ours={**_table4("bert4rec"), **_table4("rotary")},
        common=BEST_TOWERS,
    ),
    "table5": Table(
        "MMSR and what it is compared with",
        {
            "grurec": {"sequence": "grurec", **ONLY_ID},
            "nextitnet": {"sequence": "nextitnet", **ONLY_ID},
            "sasrec": {"sequence": "sasrec", **ONLY_ID},
            "fdsa": {"item": "both", "sequence": "fdsa"},
            "carca++": {"item": "both", "sequence": "carca"},
            "vqrec": CODES,
            "morec++": {"fusion": "concat"},
            "mmsr": {"fusion": "merge"},
        },
        common=BEST_TOWERS,
    ),
    "table6": Table(
        "pretrained models of pictures and texts",
        {
            "clip": {"vlp": CLIP},
            "groupvit": {"vlp": GROUPVIT},
            # it knows no more places
            "vilt": {"vlp": "hf:dandelin/vilt-b32-mlm", "title_tokens": 40},
            "visualbert": {**VISUALBERT, **REGION},
            "flava": {"vlp": "hf:facebook/flava-full"},
        },
    ),
    "table7": Table(
        "what VisualBERT sees",
        {
            "id": ONLY_ID,
            "region": {**VISUALBERT, **REGION},
            "grid": {**VISUALBERT, "vision": RESNET},
            "patch-emb": {**VISUALBERT, "vision": f"stem:{CLIP}"},
            "patch-vit": {**VISUALBERT, "vision": CLIP},
        },
    ),
    "table8": Table(
        "cold items; IDSR, titles, pictures, both",
        _table4("sasrec"),
        common=BEST_TOWERS,
        protocol="cold",
    ),
    "table11": Table(
        "how much of the towers trains",
        {
            "id": ONLY_ID,
            "roberta": {"text": ROBERTA, **ONLY_TEXT, "tune": "top:2"},
            "roberta-full": {"text": ROBERTA, **ONLY_TEXT, "tune": "full"},
            "mae": {**MAE, **ONLY_VISION, "tune": "top:2"},
            "mae-full": {**MAE, **ONLY_VISION, "tune": "full"},
            "resnet": {"vision": RESNET, **ONLY_VISION, "tune": "top:2"},
            "resnet-full": {"vision": RESNET, **ONLY_VISION, "tune": "full"},
            "roberta+mae": {"text": ROBERTA, **MAE, "tune": "top:2"},
            "roberta+mae-full": {"text": ROBERTA, **MAE, "tune": "full"},
        },
    ),
    "table12": Table(
        "learning rates: of the towers, of what stands on them",
        {
            f"top-{top}-downstream-{downstream}": {
                "text_lr": float(top),
                "vision_lr": float(top),
                "lr": float(downstream),
            }
            for top, downstream in (
                ("5e-5", "5e-5"),
                ("8e-5", "8e-5"),
                ("1e-4", "1e-4"),
                ("8e-5", "1e-4"),
                ("5e-5", "1e-4"),
            )
        },
        common={"text": ROBERTA, **MAE},
    ),
    "table13": Table(
        "length of titles in tokens; titles, both",
        {
            f"tokens-{tokens}{suffix}": {"title_tokens": tokens, **setting}
            for suffix, setting in (("-text", ONLY_TEXT), ("", {}))
            for tokens in (10, 30, 50)
        },
        common={"text": ROBERTA, **MAE},
    ),
    "table14": Table(
        "share of patches hidden in training; pictures, both",
        {
            f"mask-{share}{suffix}": {"patch_mask": share, **setting}
            for suffix, setting in (("-vision", ONLY_VISION), ("", {}))
            for share in (0.0, 0.5, 0.75)
        },
        common={"text": ROBERTA, "vision": MAE["vision"]},
    ),
}
"""By the paper's numbers. Values `none` and False leave a part out, whatever it is in the other rows."""


def _of_table(name: str, table: Table) -> dict[str, Setting]:
    common = {**PAPER, **table.common}
    rows = {f"paper-{name}-{row}": {**common, **setting} for row, setting in table.all_rows.items()}
    return {f"paper-{name}": common, **rows}


PRESETS: dict[str, Setting] = {
    "default": {},
    "paper": PAPER,
    "paper-best": {**PAPER, **TABLES["table4"].common, **TABLES["table4"].rows["sasrec"]},
    **{preset: setting for name, table in TABLES.items() for preset, setting in _of_table(name, table).items()},
}
"""By what stands behind --preset: the paper's setting, its best model, what a table's rows share, and each row."""


def find_preset(name: str) -> Setting:
    """The preset of that name; raises UserError, which names families and not all of the rows."""
    if name in PRESETS:
        return PRESETS[name]
    for table, found in TABLES.items():
        start = f"paper-{table}-"
        if name.startswith(start):
            raise unknown_name(f"row of --preset {start}ROW:", name.removeprefix(start), found.all_rows)
    families = [preset for preset in PRESETS if not any(preset.startswith(f"paper-{table}-") for table in TABLES)]
    said = str(unknown_name("preset", name, families))
    raise UserError(f"{said} Each row of a table has its own, such as paper-table3-gate")

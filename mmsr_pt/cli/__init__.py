"""The command `mmsr-pt`: what one does with a trained model, before training one, and to train many.

    mmsr-pt evaluate  --model runs/first --data data/hm
    mmsr-pt recommend --model runs/first --data data/hm --history 0108775015,0110065001
    mmsr-pt encode    --model runs/first --data data/hm --out hm-index
    mmsr-pt serve     --model runs/first --index hm-index
    mmsr-pt explore   --model runs/first runs/ids --data data/hm
    mmsr-pt publish   --model runs/first --repo_id user/name
    mmsr-pt export    --model runs/first --out exported
    mmsr-pt cache     --data data/hm --text hf:roberta-base --vision timm:swin_base_patch4_window7_224
    mmsr-pt study     table3 --data data/hm data/mine -- --text hf:roberta-base --vision timm:resnet50
    mmsr-pt report    runs/first
    mmsr-pt study     transfer --source data/hm --target data/mine --target_users 1000 all -- --text hf:roberta-base

evaluate, recommend, encode and cache run under plain python, `torchrun -m mmsr_pt.cli ...` and `accelerate launch -m
mmsr_pt.cli ...`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch
import tyro

from mmsr_pt.cli.cache import cache_command
from mmsr_pt.cli.encode import encode_command
from mmsr_pt.cli.evaluate import evaluate_command
from mmsr_pt.cli.explore import explore_command
from mmsr_pt.cli.export import export_command
from mmsr_pt.cli.publish import publish_command
from mmsr_pt.cli.recommend import recommend_command
from mmsr_pt.cli.report import report_command
from mmsr_pt.cli.serve import serve_command
from mmsr_pt.cli.study import TRANSFER, study_command, transfer_main, with_flags_bound
from mmsr_pt.flags import parse_flags
from mmsr_pt.log import setup_logging, user_facing

app = tyro.extras.SubcommandApp()
app.command(name="evaluate")(evaluate_command)
app.command(name="recommend")(recommend_command)
app.command(name="encode")(encode_command)
app.command(name="serve")(serve_command)
app.command(name="explore")(explore_command)
app.command(name="publish")(publish_command)
app.command(name="export")(export_command)
app.command(name="cache")(cache_command)
app.command(name="study")(study_command)
app.command(name="report")(report_command)


@user_facing
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `mmsr-pt`."""
    setup_logging(int(os.environ.get("RANK", "0")))
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["cache"] and not {"-h", "--help"} & set(words):
            # presets and the one sentence for a wrong flag, as in pretrain/run.py
            cache_command(parse_flags(["--cache", *words[1:]]))
            return
        if words[:1] == ["study"]:
            words = with_flags_bound(words)
            if words[1:2] and words[1] in TRANSFER:
                transfer_main(words[1:])
                return
        app.cli(prog="mmsr-pt", description=(__doc__ or "").splitlines()[0], args=words, use_underscores=True)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

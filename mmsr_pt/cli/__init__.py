"""mmsr-pt: what one does with a trained model, and to train many. In the order in which one meets them:

    check      look at every byte of a domain: is it as it was written?
    cache      compute the frozen part of a training once, ahead of it
    evaluate   rank the whole catalogue for held-out items, beside popularity and item transitions
    recommend  show what a model ranks highest behind a history
    report     a run as one page: curves, figures, pictures
    encode     the vectors of a catalogue: an index to recommend from, or a file for other programs
    explore    try models out on a page of pictures, beside each other
    serve      recommend over HTTP
    export     both towers as ONNX, for servers without torch
    publish    a run onto the Hugging Face hub, with a card; a catalogue's vectors; a Space with the explorer
    study      all rows of a table of the paper, a figure of it, or transfer against scratch, as one command

Before all of them: shards/build.py makes a domain of a raw dataset, pretrain/run.py trains a model on it,
finetune/run.py goes on with one on another domain.

    mmsr-pt evaluate  --model runs/first --data data/hm
    mmsr-pt recommend --model runs/first --data data/hm --history 0108775015,0110065001
    mmsr-pt study     table3 --data data/hm data/mine -- --text hf:roberta-base --vision timm:resnet50

mmsr-pt COMMAND --help says more about one. evaluate, recommend, encode and cache run on several GPUs under torchrun or
accelerate: torchrun --nproc_per_node 2 -m mmsr_pt.cli evaluate ...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch
import tyro

from mmsr_pt.cli.cache import cache_command
from mmsr_pt.cli.check import check_command
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
app.command(name="check")(check_command)
app.command(name="cache")(cache_command)
app.command(name="evaluate")(evaluate_command)
app.command(name="recommend")(recommend_command)
app.command(name="report")(report_command)
app.command(name="encode")(encode_command)
app.command(name="explore")(explore_command)
app.command(name="serve")(serve_command)
app.command(name="export")(export_command)
app.command(name="publish")(publish_command)
app.command(name="study")(study_command)


@user_facing
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `mmsr-pt`."""
    setup_logging(int(os.environ.get("RANK", "0")))
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        # in order and in a line each, which a list made of the commands' own help is not
        (sys.stdout if words else sys.stderr).write(__doc__ or "")
        sys.exit(0 if words else 2)
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

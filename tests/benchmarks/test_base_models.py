"""The step whose memory is measured is a real one, of full histories."""

import json
import subprocess
import sys

import pytest

from benchmarks import base_models
from benchmarks.base_models import made_up_batch, main
from tests.models.towers.vlps import VOCAB, publish
from tests.pretrain.launching import ROOT


def test_every_slot_of_the_batch_holds_an_item_of_its_own():
    batch = made_up_batch(users=3, length=5, tokens=7, height=8, width=8, vocab_size=40)
    assert len(batch.items) == 3 * 5 + 128
    assert batch.sequence.unique().numel() == 15
    assert batch.mask.all()
    assert batch.items.title_mask.all()
    assert batch.items.title_ids.shape == (143, 7)


_STEP = """
import json, sys
from benchmarks.base_models import MODELS, Settings, measure
from mmsr_pt.config import ModelConfig

MODELS["small"] = lambda: ModelConfig(vlp=sys.argv[1], width=16)
print(json.dumps(measure(Settings(models=("small",), users=2, tokens=6, vocab_size=int(sys.argv[2]), recompute=True))))
"""


@pytest.mark.slow
def test_one_step_is_taken_and_said(tmp_path):
    publish("flava", tmp_path)
    # an engine leaves a process group behind
    command = [sys.executable, "-c", _STEP, f"hf:{tmp_path}", str(VOCAB)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout.strip().splitlines()[-1])
    assert figures["items"] == 2 * 21 + 128
    assert 0 < figures["trained"] < figures["parameters"]
    assert figures["loss"] > 0
    assert figures["peak_bytes"] > 1e8


def test_an_unknown_model_is_said(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--models", "rwkv"])
    assert end.value.code == 2
    assert "unknown model 'rwkv'; known: flava, roberta+swin" in capsys.readouterr().err
    assert base_models.MODELS.keys() == {"roberta+swin", "flava"}

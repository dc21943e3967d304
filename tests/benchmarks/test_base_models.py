"""The step whose memory is measured is a real one, of full histories."""

import pytest

from benchmarks import base_models
from benchmarks.base_models import MODELS, Settings, made_up_batch, main, measure
from mmsr_pt.config import ModelConfig
from tests.models.towers.vlps import VOCAB, publish


def test_every_slot_of_the_batch_holds_an_item_of_its_own():
    batch = made_up_batch(users=3, length=5, tokens=7, height=8, width=8, vocab_size=40)
    assert len(batch.items) == 3 * 5 + 128
    assert batch.sequence.unique().numel() == 15
    assert batch.mask.all()
    assert batch.items.title_mask.all()
    assert batch.items.title_ids.shape == (143, 7)


@pytest.mark.parametrize("recompute", [False, True])
def test_one_step_is_taken_and_said(tmp_path, monkeypatch, recompute):
    publish("flava", tmp_path)
    monkeypatch.setitem(MODELS, "small", lambda: ModelConfig(vlp=f"hf:{tmp_path}", width=16))
    settings = Settings(models=("small",), users=2, tokens=6, vocab_size=VOCAB, recompute=recompute)
    figures = measure(settings)
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

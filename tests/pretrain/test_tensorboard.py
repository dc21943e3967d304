"""What a whole run leaves in TensorBoard, also where it is taken up again, and where weights are split over ranks."""

from pathlib import Path

import pytest

from mmsr_pt.data.domain import Domain
from tests.pretrain.launching import ds_config, finish, metrics, small_run
from tests.test_board import read


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "stage"), [(0, 2), (2, 3)], ids=["one", "two-zero3"])
def test_a_run_taken_up_again_stands_there_once(
    tmp_path: Path, small_domain: Domain, num_ranks: int, stage: int
) -> None:
    run = small_run(tmp_path, small_domain, "--fusion", "gate", "--eval_every", 2, "--steps", 4, "--num_workers", 0)
    run[1] = ds_config(tmp_path / "stage.json", stage)
    finish(*run, num_ranks=num_ranks)
    finish(*run, "--resume", num_ranks=num_ranks)
    board = read(tmp_path / "run" / "tensorboard")
    tags = board.Tags()
    assert tags["histograms"] == ["gates/gate"]
    opened = board.Histograms("gates/gate")
    assert [event.step for event in opened] == [2, 4]
    for event in opened:
        # 3 items, one in a hundred, with a gate for each of 32 entries
        assert event.histogram_value.num == 3 * 32
        assert 0 <= event.histogram_value.min < event.histogram_value.max <= 1
    (line,) = metrics(tmp_path / "run", "eval", split="test", model="mmsr", slice="all")
    assert board.Scalars("test/mmsr/all/HR@10")[-1].value == pytest.approx(line["HR@10"])
    assert "_hparams_/session_start_info" in board.PluginTagToContent("hparams")
    (vectors,) = (tmp_path / "run" / "tensorboard").glob("*/*/tensors.tsv")
    assert len(vectors.read_text().splitlines()) == small_domain.num_items
    assert {path.name for path in vectors.parent.iterdir()} == {"tensors.tsv", "metadata.tsv", "sprite.png"}

"""RecBole's SASRec as a contestant. Runs in RecBole's own environment, which has neither mmsr_pt nor its versions.

    python -m venv recbole && recbole/bin/pip install recbole==1.2.1

RecBole makes a training case of every prefix of a sequence, and its batch counts such cases.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any


class SASRec:
    """Trains epochs of RecBole's SASRec under its cross-entropy over all items."""

    def __init__(self, sequences: str, batch: int, window: int, width: int, threads: int) -> None:
        """Sets up.

        Args:
            sequences: JSON file with a list of items for each user, oldest first, two held-out ones at the end.
            batch: prefixes a step.
            window: longest history.
            width: of the items; the feed-forward is four times as wide.
            threads: of torch.
        """
        import torch

        torch.set_num_threads(threads)
        _mend_old_names()
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.trainer import Trainer
        from recbole.utils import get_model, init_seed

        self._scratch = tempfile.TemporaryDirectory()
        root = Path(self._scratch.name)
        os.chdir(root)  # RecBole leaves logs in the working directory
        _write(json.loads(Path(sequences).read_text()), root / "bench")
        settings = {
            "data_path": str(root),
            "checkpoint_dir": str(root / "saved"),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "hidden_size": width,
            "inner_size": 4 * width,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dropout_prob": 0.1,
            "attn_dropout_prob": 0.1,
            "MAX_ITEM_LIST_LENGTH": window,
            "train_batch_size": batch,
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
            "reproducibility": False,
        }
        config = Config(model="SASRec", dataset="bench", config_dict=settings)
        init_seed(0, False)
        dataset = create_dataset(config)
        self._train_data = data_preparation(config, dataset)[0]
        model = get_model("SASRec")(config, self._train_data.dataset).to(config["device"])
        self._trainer = Trainer(config, model)
        self._cases = len(self._train_data.dataset)
        torch.set_num_threads(threads)

    def run(self) -> dict[str, float]:
        """Trains an epoch; returns epoch_s, and cases and loss of the epoch."""
        start = time.perf_counter()
        loss: Any = self._trainer._train_epoch(self._train_data, 0, show_progress=False)
        return {"epoch_s": time.perf_counter() - start, "cases": float(self._cases), "loss": float(loss)}


def _write(sequences: list[list[int]], directory: Path) -> None:
    """RecBole's atomic file."""
    directory.mkdir()
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, items in enumerate(sequences):
        lines += [f"u{user}\ti{item}\t{position}" for position, item in enumerate(items)]
    (directory / "bench.inter").write_text("\n".join(lines) + "\n")


def _mend_old_names() -> None:
    """NumPy 2 has dropped names that RecBole 1.2.1 still uses."""
    import numpy as np

    for name, kind in (("bool", bool), ("int", int), ("float", float), ("object", object), ("str", str)):
        if name not in vars(np):
            setattr(np, name, kind)
    for name, kind in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        if name not in vars(np):
            setattr(np, name, kind)

"""Pre-train a multimodal sequential recommender on one or several domains.

    deepspeed pretrain/run.py --ds_config ds_configs/zero2.json
    deepspeed pretrain/run.py --ds_config ds_configs/zero2.json --data data/hm --text hf:DIR --vision timm:NAME

With no --data the drawn domain is built under data/ first. `python pretrain/run.py` works too, as one process.
"""

from __future__ import annotations

import sys

from mmsr_pt.signals import Watch, watched  # first, as it says there

# isort: split
import torch

from mmsr_pt.assembly import (
    build_cache,
    build_model,
    build_order,
    build_param_groups,
    build_stream,
    check_together,
    open_domains,
)
from mmsr_pt.flags import parse_flags
from mmsr_pt.log import setup_logging, user_facing
from mmsr_pt.run_dir import choose, record, require_space
from mmsr_pt.trainer import Trainer
from mmsr_pt.training.distributed import from_rank0
from mmsr_pt.training.ds_config import read_ds_config
from mmsr_pt.training.engine import Engine
from mmsr_pt.training.launch import end_process, init_distributed, strip_local_rank
from mmsr_pt.training.task import NextItemTask


@user_facing
@watched
def main(watch: Watch, argv: list[str] | None = None) -> None:
    """Reads top to bottom: what is asked for, the data, the model, the engine, the run, the table."""
    config = parse_flags(strip_local_rank(sys.argv[1:] if argv is None else argv))
    place = init_distributed()
    setup_logging(place.rank)
    ds_config = read_ds_config(config.run.ds_config, place.world_size)
    check_together(config, ds_config)

    # everything that can be wrong is found before anything is written
    domains = open_domains(config)
    run_dir = from_rank0(lambda: choose(config, domains[0].name))
    order = build_order(config, domains, ds_config["train_batch_size"], place.world_size)
    torch.manual_seed(config.run.seed)  # the same weights on every rank ...
    model, preprocessor = build_model(config.model, domains)
    param_groups = build_param_groups(config.optim, model)
    cache = build_cache(config, model, preprocessor, domains, ds_config, place)

    task = NextItemTask(model, config.optim.loss, num_domains=len(domains))
    engine = Engine(task, param_groups, ds_config, place)
    torch.manual_seed(config.run.seed + place.rank)  # ... and other dropout
    trainer = Trainer(config, domains, preprocessor, engine, order, run_dir, place, watch, cache)
    from_rank0(lambda: require_space(run_dir, engine.parameters))
    if config.run.resume or config.run.resume_or_start:
        trainer.resume()
    from_rank0(lambda: record(run_dir, config, ds_config))
    trainer.fit(build_stream(config, domains, trainer.order, preprocessor, place, ds_config, trainer.step, cache))
    trainer.test()


if __name__ == "__main__":
    main()
    end_process()

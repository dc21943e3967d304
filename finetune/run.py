"""Fine-tune a trained recommender on another domain, or train one from scratch to compare.

    deepspeed finetune/run.py --ds_config ds_configs/zero2.json --init RUN
    deepspeed finetune/run.py --ds_config ds_configs/zero2.json --init user/name --data data/mine --max_users 10000
    deepspeed finetune/run.py --ds_config ds_configs/zero2.json --init none --data data/mine --max_users 10000

With no --data the drawn target domain is built under data/ first. `python finetune/run.py` works too, as one process.
"""

from __future__ import annotations

import sys

from mmsr_pt.signals import Watch, watched  # first, as it says there

# isort: split
import torch

from mmsr_pt.assembly import (
    build_cache,
    build_order,
    build_param_groups,
    build_stream,
    check_together,
    open_domains,
)
from mmsr_pt.log import setup_logging, user_facing
from mmsr_pt.run_dir import choose, record, require_space
from mmsr_pt.trainer import Trainer
from mmsr_pt.training.distributed import from_rank0
from mmsr_pt.training.ds_config import read_ds_config
from mmsr_pt.training.engine import Engine
from mmsr_pt.training.launch import end_process, init_distributed, strip_local_rank
from mmsr_pt.training.task import NextItemTask
from mmsr_pt.transfer import build_transferred, parse_finetune_flags


@user_facing
@watched
def main(watch: Watch, argv: list[str] | None = None) -> None:
    """Reads top to bottom: what is asked for, of which model, the data, the parts, the engine, the run, the table."""
    config, source = parse_finetune_flags(strip_local_rank(sys.argv[1:] if argv is None else argv))
    place = init_distributed()
    setup_logging(place.rank)
    ds_config = read_ds_config(config.run.ds_config, place.world_size)
    check_together(config, ds_config)

    # everything that can be wrong is found before anything is written
    domains = open_domains(config, drawn="target")
    run_dir = from_rank0(lambda: choose(config, domains[0].name))
    order = build_order(config, domains, ds_config["train_batch_size"], place.world_size)
    torch.manual_seed(config.run.seed)  # the same weights on every rank ...
    model, preprocessor = build_transferred(config.model, source, domains)
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
    batches = build_stream(config, domains, trainer.order, preprocessor, place, ds_config, trainer.step, cache)
    trainer.fit(batches, validate_first=source is not None)
    trainer.test()


if __name__ == "__main__":
    main()
    end_process()

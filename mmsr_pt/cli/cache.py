"""`mmsr-pt cache`: the frozen part of training, ahead of it."""

from __future__ import annotations

import logging

import tyro

from mmsr_pt.assembly import build_cache, build_model, open_domains
from mmsr_pt.config import PretrainConfig
from mmsr_pt.log import setup_logging
from mmsr_pt.training.ds_config import read_ds_config
from mmsr_pt.training.launch import init_distributed

log = logging.getLogger(__name__)


def cache_command(config: tyro.conf.OmitArgPrefixes[PretrainConfig]) -> None:
    """Compute what the frozen blocks of a model make of its domains, for runs with --cache, and stop there.

    Takes the flags of pretrain/run.py, of which --data, --text, --vision, --tune, --title_tokens, --cache_dtype and the
    precision of --ds_config decide what is computed; a run with the same ones finds it.

    Example: mmsr-pt cache --data data/hm --text hf:FacebookAI/roberta-base --vision none

    Args:
        config: As in pretrain/run.py.
    """
    place = init_distributed()
    setup_logging(place.rank)
    ds_config = read_ds_config(config.run.ds_config, place.world_size)
    domains = open_domains(config)
    model, preprocessor = build_model(config.model, domains)
    cache = build_cache(config, model, preprocessor, domains, ds_config, place)
    assert cache is not None
    for domain, store in zip(domains, cache.stores):
        log.info("%s: %.2f GB in %s", domain.name, store.layout.num_bytes / 1e9, store.directory)

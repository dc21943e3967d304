"""The parts of a run, made from its configuration: what the scripts put together."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from mmsr_pt.cache import ItemCache, open_cache
from mmsr_pt.codebook import fit_codebook
from mmsr_pt.config import ModelConfig, OptimConfig, PretrainConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.item_table import ItemTable
from mmsr_pt.data.naive import every_slot
from mmsr_pt.data.order import StreamOrder, choose_lanes
from mmsr_pt.data.preprocess import Preprocessor, Tokenizer, tokenizer_for
from mmsr_pt.data.shards.build import ensure_drawn_domain
from mmsr_pt.data.stream import Share, TrainLoader, UserStream
from mmsr_pt.evaluation.table import wide_console
from mmsr_pt.log import UserError
from mmsr_pt.models.codes import CodeItemEncoder
from mmsr_pt.models.item_encoder import NO_TOWERS, TrainedTowers
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.sequence import sequence_encoders
from mmsr_pt.models.towers.text import check_hf_place, check_text_name
from mmsr_pt.training.distributed import from_rank0
from mmsr_pt.training.ds_config import precision, zero_stage
from mmsr_pt.training.launch import DistInfo
from mmsr_pt.training.optim import ParamGroup, check_gradients, group_table, param_groups


def open_domains(config: PretrainConfig, drawn: Literal["source", "target"] = "source") -> list[Domain]:
    """The domains of --data, or the drawn one; raises UserError where one lacks what the model reads."""
    model = config.model
    paths = config.data.data or (ensure_drawn_domain(variant=drawn),)
    domains = [Domain.load(path, config.data.max_users, config.run.seed) for path in paths]
    if model.learns_items and len(domains) > 1:
        raise UserError(
            f"--item {model.item} learns one domain's items, {len(domains)} domains were given: name one --data"
        )
    for domain in domains:
        for modality, flag, tower in (("text", "--text", model.text), ("image", "--vision", model.vision)):
            if model.reads_content and tower != "none" and modality not in domain.modalities:
                raise UserError(
                    f"{domain.path} was built without {modality}: use {flag} none, or build it again with it"
                )
    return domains


def build_order(config: PretrainConfig, domains: Sequence[Domain], global_batch: int, world_size: int) -> StreamOrder:
    """The order of training users; raises UserError where the domains have too few tars for the readers."""
    tar_users = tuple(tuple(tar.num_users for tar in domain.train_tars) for domain in domains)
    return StreamOrder(
        tar_users=tar_users,
        weights=config.data.weights or (1.0,) * len(domains),
        global_batch=global_batch,
        num_lanes=choose_lanes(tar_users, global_batch, world_size, num_workers(config, world_size)),
        shuffle_buffer=config.data.shuffle_buffer,
        seed=config.run.seed,
    )


def num_workers(config: PretrainConfig, world_size: int) -> int:
    """Loader processes of a rank: those asked for, else the power of two that leaves each rank a core, at most 4."""
    if config.data.num_workers >= 0:
        return config.data.num_workers
    if config.model.item == "id":
        return 0  # nothing to decode: handing batches over would cost more than making them
    spare = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE") or world_size) - 1
    return next((workers for workers in (4, 2, 1) if workers <= spare), 0)


def check_together(config: PretrainConfig, ds_config: Mapping[str, Any]) -> None:
    """Raises UserError where flags and the DeepSpeed configuration do not go together."""
    if config.model.recompute and zero_stage(ds_config) == 3:
        raise UserError(
            "--recompute runs modules again in the backward pass, when ZeRO stage 3 has taken their weights apart: "
            "leave it out, or use a --ds_config of stage 2"
        )


def build_model(
    config: ModelConfig,
    domains: Sequence[Domain],
    trained: TrainedTowers = NO_TOWERS,
    tokenizer: Tokenizer | None = None,
) -> tuple[Recommender, Preprocessor]:
    """A fresh model on the CPU, its pretrained towers loaded, and the preprocessing that its towers ask for.

    Collective with `--item codes`, whose codebook is fitted on the domains' titles: call on every rank.

    Args:
        config: of the model.
        domains: to train on.
        trained: towers of another model, which go on learning in this one.
        tokenizer: of a trained text tower.
    """
    if config.reads_content and tokenizer is None:
        if config.vlp != "none":
            check_hf_place("--vlp", config.vlp.removeprefix("hf:"))
        check_text_name(config.text)
        tokenizer = tokenizer_for(config.text, domains[0].path, config.tokenizer)
    model = Recommender.build(
        config,
        vocab_size=None if tokenizer is None else tokenizer.vocab_size,
        num_items=domains[0].num_items if config.learns_items else None,
        trained=trained,
    )
    preprocessor = Preprocessor(tokenizer, model.image_spec, config.title_tokens)
    if isinstance(model.item_encoder, CodeItemEncoder):
        fit_codebook(model.item_encoder, preprocessor, domains)
    return model, preprocessor


def build_param_groups(config: OptimConfig, model: Recommender) -> list[ParamGroup]:
    """Who learns how fast, as torch optimizers want it. Collective: rank 0 prints it layer group by layer group.

    Raises:
        UserError: something is to train that no score depends on.
    """

    def show() -> None:
        wide_console().print(group_table(model, config))
        check_gradients(model)

    from_rank0(show)
    return param_groups(model, config)


def build_cache(
    config: PretrainConfig,
    model: Recommender,
    preprocessor: Preprocessor,
    domains: Sequence[Domain],
    ds_config: Mapping[str, Any],
    place: DistInfo,
) -> ItemCache | None:
    """The prefix cache where --cache asks for it. Collective: call on every rank."""
    if not config.data.cache:
        return None
    name = config.data.cache_dtype
    dtype = precision(ds_config) if name == "run" else getattr(torch, name)
    workers = num_workers(config, place.world_size)
    return open_cache(model, preprocessor, domains, dtype, place.device, workers)


def build_stream(
    config: PretrainConfig,
    domains: Sequence[Domain],
    order: StreamOrder,
    preprocessor: Preprocessor,
    place: DistInfo,
    ds_config: Mapping[str, Any],
    first_step: int,
    cache: ItemCache | None = None,
) -> TrainLoader:
    """This rank's endless micro-batches from optimizer step `first_step` on."""
    is_bce = config.optim.loss == "bce"
    accumulation = ds_config["gradient_accumulation_steps"]
    tables, user_bases, items, users = [], [], 0, 0
    for domain in domains:
        tables.append(ItemTable.of(domain, items, config.data.pool_size))
        user_bases.append(users)
        items, users = items + domain.num_items, users + domain.num_users
    stream = UserStream(
        order=order,
        tables=tables,
        tars=[domain.train_tars for domain in domains],
        user_bases=user_bases,
        preprocessor=preprocessor if cache is None else cache.preprocessor,
        share=Share(place.rank, place.world_size, accumulation, replicate_pool=is_bce),
        max_sequence=config.model.max_history + 1,
        with_negatives=is_bce,
        cloze_rate=0.0 if sequence_encoders[config.model.sequence].is_causal else config.optim.cloze_rate,
        first_step=first_step,
    )
    return TrainLoader(
        stream,
        num_workers(config, place.world_size),
        pin_memory=place.device.type == "cuda",
        complete=None if cache is None else cache.fill,
        lay_out=functools.partial(every_slot, preprocessor=preprocessor) if config.data.naive else None,
    )

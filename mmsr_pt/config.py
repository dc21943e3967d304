"""Every number that is not DeepSpeed's, each with one owner; the fields are the flags (flags.py).

`ds_configs/*.json` own micro-batch, accumulation, clipping, precision, ZeRO stage and offload: none of that is here.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mmsr_pt.log import UserError
from mmsr_pt.registry import unknown_name

ConfigT = TypeVar("ConfigT")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


DEFAULT_POLICY = "top:2"
"""What of a tower trains where the user says nothing (section 4.2 of the paper)."""

READ_BOTH = ("fdsa", "carca")
"""Sequence encoders that read learned vectors and content side by side, and nothing else."""


@dataclass(frozen=True)
class ModelConfig:
    """The parts of a recommender and their sizes."""

    item: Literal["content", "id", "both", "codes"] = "content"
    """What an item is: its title and picture; a learned vector of its own (`id`: IDSR, cannot be transferred); `both`
    side by side (FDSA and CARCA++, cannot be transferred either); or `codes` of its title (VQRec)."""
    text: str = "tiny"
    """Text tower: tiny, hf:NAME, hf:/a/local/dir, or none (MMSR-V)."""
    vision: str = "tiny"
    """Vision tower: tiny, timm:NAME, timm:local-dir:/a/dir, hf:NAME, hf:/a/local/dir, stem:hf:NAME (the patch
    embedding alone), region or region:/a/file.pth (what a detector finds, 49 regions; needs --cache), or none (MMSR-T).
    """
    patch_mask: float = 0.0
    """Share of a picture's patches that a vision transformer does not see in training, drawn anew each time, in [0, 1)
    (ViT-MAE's pre-training and the paper: 0.75)."""
    patch_mask_eval: bool = False
    """Hide them in evaluation, too, which makes item vectors random."""
    vlp: str = "none"
    """A pretrained model of pictures and texts in place of --text and --vision: hf:NAME or hf:/a/local/dir of a CLIP,
    SigLIP, GroupViT, ViLT or FLAVA; or of a VisualBERT, or a BERT to start one from, for which --vision says what it
    sees."""
    tokenizer: str | None = None
    """Where titles find their tokenizer, hf:NAME or hf:/a/local/dir, if it is not beside the text tower's weights."""
    fusion: str | None = None
    """How text and vision become one item vector: sum, concat, gate, film, each also with a perceptron behind it
    (sum+dnn); vanilla (FDSA's weights over both); co (co-attention), merge (merge-attention). None given: merge, and
    concat with --vlp, as in the paper; fdsa takes vanilla, carca concat; ViLT, VisualBERT and FLAVA join both by
    themselves. sum and concat are MoRec++."""
    fusion_layers: int = 1
    """Blocks of an attention fusion."""
    fusion_heads: int = 4
    """Attention heads of an attention fusion."""
    sequence: str = "sasrec"
    """Sequence encoder: sasrec, grurec, nextitnet, bert4rec, or rotary (a causal transformer of today's kind); with
    --item both fdsa or carca."""
    sequence_layers: int | None = None
    """Blocks of the sequence encoder; none given: the paper's number (grurec 4, the others 2)."""
    sequence_heads: int = 2
    """Attention heads of the sequence encoder (sasrec, bert4rec, rotary, fdsa, carca)."""
    num_codes: int = 32
    """Codes of an item (`--item codes`), one for each of so many equal parts of its title's vector."""
    code_values: int = 256
    """Values that each code can take (`--item codes`): centroids of its part, found by k-means over the catalogue."""
    width: int = 128
    """D: width of item vectors and of the sequence encoder (the paper: 768)."""
    dropout: float = 0.1
    """Dropout of the sequence encoder and the fusion, in [0, 1)."""
    attention_dropout: float = 0.0
    """Dropout of attention probabilities in every part, pretrained towers included, in [0, 1) (the paper: 0.1)."""
    modality_dropout: float = 0.0
    """Share of the items that lose their title or their picture, either with equal chance, each time they are encoded
    in training, in [0, 1)."""
    recompute: bool = False
    """Save memory in training: what the trained parts of towers and fusion compute on the way is not kept for the
    backward pass but computed again there (gradient checkpointing), a few items at a time; not at ZeRO stage 3."""
    max_history: int = 20
    """L: the newest items of a history that the sequence encoder reads."""
    title_tokens: int = 50
    """Longest title in tokens, special ones included; the rest is cut."""
    tune: str | None = None
    """What of all towers trains: top:K (its last K blocks), full, frozen, side (a small network beside the frozen
    tower, which sees its hidden states at several depths), or lora:R (updates of rank R of every linear map in its
    blocks). `tiny` always trains in full. None given: top:2; of ViLT and VisualBERT top:4."""
    text_tune: str | None = None
    """What of the text tower trains; none given: --tune."""
    vision_tune: str | None = None
    """What of the vision tower trains; none given: --tune, but what sees for VisualBERT stays frozen."""
    joint_tune: str | None = None
    """What trains of the blocks in which ViLT, VisualBERT or FLAVA join both; none given: --tune, of FLAVA all."""
    score: Literal["scaled", "cosine", "dot"] | None = None
    """How a user meets an item: inner product / sqrt(D), cosine / temperature, or inner product (the paper). None
    given: scaled for content, since untrained towers do not get started on cosines; cosine for `--item id`, `both` and
    `codes`, whose vectors start too short for products; dot for carca, whose score is no product."""
    temperature: float = 0.1
    """Divides cosine scores; unused by the others."""

    @property
    def text_policy(self) -> str:
        """`text_tune`, or what stands for it where none is given."""
        return self.text_tune or self.tune or DEFAULT_POLICY

    @property
    def vision_policy(self) -> str:
        """`vision_tune`, or what stands for it where none is given."""
        return self.vision_tune or self.tune or DEFAULT_POLICY

    @property
    def fusion_name(self) -> str:
        """`fusion`, or what stands for it where none is given."""
        of_sequence = {"fdsa": "vanilla", "carca": "concat"}.get(self.sequence)
        return self.fusion or of_sequence or ("merge" if self.vlp == "none" else "concat")

    @property
    def score_kind(self) -> Literal["scaled", "cosine", "dot"]:
        """`score`, or what stands for it where none is given."""
        if self.sequence == "carca":
            return "dot"
        return self.score or ("scaled" if self.item == "content" else "cosine")

    @property
    def reads_content(self) -> bool:
        """Whether an item's title or picture is read."""
        return self.item != "id"

    @property
    def learns_items(self) -> bool:
        """Whether each item of one catalogue has a learned vector, which means nothing in another."""
        return self.item in ("id", "both")

    def __post_init__(self) -> None:
        if self.vlp != "none":
            _require(self.vlp.startswith("hf:"), f"--vlp {self.vlp}: give hf:NAME or hf:/a/local/dir, or none")
            _require(
                self.text in ("tiny", self.vlp), f"--vlp {self.vlp} reads titles itself: leave --text {self.text} out"
            )
            # towers are known by these names from here on; what another --vision means depends on the model
            object.__setattr__(self, "text", self.vlp)
            if self.vision == "tiny":
                object.__setattr__(self, "vision", self.vlp)
        self._check_item()
        _require(
            self.tokenizer is None or self.tokenizer.startswith("hf:"),
            f"--tokenizer {self.tokenizer}: give hf:NAME or hf:/a/local/dir",
        )
        _require(
            self.item == "id" or not (self.text == "none" and self.vision == "none"),
            "--text none and --vision none leave an item without content: keep one, or use --item id",
        )
        _require(
            self.width % self.sequence_heads == 0 and self.width % self.fusion_heads == 0,
            f"--width {self.width} must be divisible by --sequence_heads {self.sequence_heads} "
            f"and --fusion_heads {self.fusion_heads}",
        )
        _require(self.temperature > 0, f"--temperature {self.temperature} must be above 0")
        _require(
            not self.patch_mask or self.vision_policy != "side",
            f"--patch_mask {self.patch_mask} does not go with side tuning, which keeps what the whole picture gives: "
            "give another --vision_tune",
        )
        _require(
            not self.modality_dropout or (self.reads_content and "none" not in (self.text, self.vision)),
            f"--modality_dropout {self.modality_dropout} needs title and picture, of which it drops one: leave it out, "
            "or train with --text and --vision",
        )
        for name in ("dropout", "attention_dropout", "modality_dropout", "patch_mask"):
            _require(0 <= getattr(self, name) < 1, f"--{name} {getattr(self, name)} must lie in [0, 1)")
        at_least_1 = ("fusion_layers", "sequence_layers", "max_history", "title_tokens", "width")
        for name in (*at_least_1, "num_codes", "code_values"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"--{name} {value} must be at least 1")

    def _check_item(self) -> None:
        """Raises UserError where what an item is does not go with the other parts."""
        _require(
            (self.item == "both") == (self.sequence in READ_BOTH),
            f"--item {self.item} does not go with --sequence {self.sequence}: --item both belongs to --sequence "
            f"{' or '.join(READ_BOTH)}, and each of them to it",
        )
        _require(
            self.sequence != "carca" or self.score in (None, "dot"),
            f"--sequence carca scores by attention and knows no --score {self.score}: leave it out",
        )
        if self.item == "codes":
            _require(
                self.text != "none" and self.vlp == "none" and self.vision in ("tiny", "none"),
                f"--item codes are codes of what a pretrained text tower makes of titles, not of --text {self.text}, "
                f"--vision {self.vision}: give --text hf:NAME or hf:/a/local/dir, and no other tower",
            )
            policy = self.text_tune or self.tune
            _require(
                policy in (None, "frozen"),
                f"--item codes keeps its text tower frozen, as codes are made before training: leave {policy} out",
            )
            object.__setattr__(self, "vision", "none")


@dataclass(frozen=True)
class DataConfig:
    """Which domains train, and how they are read."""

    data: tuple[Path, ...] = ()
    """Domain directories made by shards/build.py; none given: the drawn domain, built under data/ first."""
    weights: tuple[float, ...] = ()
    """Share of each domain in an epoch, relative to its users (1 1: every user once); none given: all 1."""
    max_users: int = 0
    """Users of each domain who train and validate, drawn by --seed, a smaller number's among a larger one's; 0: all.
    The test asks all users of the domain, and what is cold or popular follows from those who train."""
    num_workers: int = -1
    """Loader processes of each rank (a power of two); 0 reads in the training process, -1 chooses by cores."""
    shuffle_buffer: int = 256
    """Users (bytes, not pixels) that each reader holds to shuffle; tars are shuffled too."""
    cache: bool = False
    """Keep what the frozen bottoms of the towers make of each item in the domain directory, and train from that."""
    cache_dtype: Literal["run", "float32", "bfloat16", "int8"] = "run"
    """In which --cache keeps them: as the run computes, or in fewer bytes; int8 says what its rounding loses."""
    naive: bool = False
    """For comparison: encode every slot of a batch, padding and repeats too, as the paper's released code does; the
    loss is the same. Needs --loss bce and no --cache."""
    max_bad: float = 0.01
    """Share of an epoch's users, and of the items, that may be damaged: these are left out, counted and named. Beyond
    it the run stops, with a checkpoint."""
    pool_size: int = 128
    """P: items drawn uniformly from each domain's catalogue at every step, shared by the batch as negatives."""

    def __post_init__(self) -> None:
        _require(
            not self.weights or len(self.weights) == len(self.data),
            f"--weights has {len(self.weights)} numbers for {len(self.data)} domains: give one for each of --data",
        )
        _require(all(w > 0 for w in self.weights), f"--weights {self.weights} must all be above 0")
        _require(self.max_users >= 0, f"--max_users {self.max_users} must not be negative")
        _require(self.shuffle_buffer >= 1, f"--shuffle_buffer {self.shuffle_buffer} must be at least 1")
        _require(0 <= self.max_bad <= 1, f"--max_bad {self.max_bad} must lie in [0, 1]")
        _require(self.pool_size >= 1, f"--pool_size {self.pool_size} must be at least 1")
        workers = self.num_workers
        _require(
            workers in (-1, 0) or (workers > 0 and workers & (workers - 1) == 0),
            f"--num_workers {workers} must be -1 (choose), 0 (none) or a power of two",
        )


@dataclass(frozen=True)
class OptimConfig:
    """Loss, AdamW and its schedule."""

    loss: Literal["softmax", "bce"] = "softmax"
    """bce: the paper's, one uniform negative a position; softmax: over the batch of all ranks and the pool, logQ."""
    bank_size: int = 0
    """Further negatives drawn from each domain at every step, whose vectors come from the last encoding of the
    catalogue: as old as the last refresh, and without gradient; 0: none (`softmax` only)."""
    bank_refresh: int = 0
    """Steps between encodings of the catalogue for the bank, which also happen at every checkpoint; 0: whenever the
    model is validated."""
    cloze_rate: float = 0.2
    """Share of a history's items that bert4rec does not see in training and is asked for, in (0, 1]."""
    lr: float = 5e-4
    """Learning rate of fusion, projections, sequence encoder, side networks and `tiny` towers."""
    text_lr: float = 1e-4
    """Learning rate of a pretrained text tower's trained blocks."""
    vision_lr: float = 1e-4
    """Learning rate of a pretrained vision tower's trained blocks."""
    joint_lr: float = 1e-4
    """Learning rate of the trained blocks in which a VLP joins titles and pictures."""
    weight_decay: float = 0.1
    """Weight decay of all but the towers (none on biases and norms)."""
    encoder_weight_decay: float = 0.0
    """Weight decay of the towers."""
    decay_from: float = 0.8
    """Share of the run after which learning rates fall linearly."""
    final_lr: float = 0.1
    """Share of the learning rates left at the end."""

    def __post_init__(self) -> None:
        for name in ("lr", "text_lr", "vision_lr", "joint_lr"):
            _require(getattr(self, name) > 0, f"--{name} {getattr(self, name)} must be above 0")
        _require(0 < self.cloze_rate <= 1, f"--cloze_rate {self.cloze_rate} must lie in (0, 1]")
        for name in ("bank_size", "bank_refresh"):
            _require(getattr(self, name) >= 0, f"--{name} {getattr(self, name)} must not be negative")
        _require(
            not self.bank_size or self.loss == "softmax",
            f"--bank_size {self.bank_size} needs --loss softmax: bce takes one negative a position and no bank",
        )
        _require(
            not self.bank_refresh or self.bank_size > 0,
            f"--bank_refresh {self.bank_refresh} needs --bank_size: how many negatives the bank gives a step",
        )
        for name in ("decay_from", "final_lr"):
            _require(0 <= getattr(self, name) <= 1, f"--{name} {getattr(self, name)} must lie in [0, 1]")


@dataclass(frozen=True)
class RunConfig:
    """How long, how often, where to."""

    preset: str = "default"
    """Named settings that other flags override: default, paper (the paper's setting), paper-best (its best model),
    paper-table3 (what the rows of its table 3 share), paper-table3-gate (one row); tables 2 to 8, 11 to 14."""
    ds_config: Path = Path("ds_configs/zero2.json")
    """The DeepSpeed configuration: batch, precision, ZeRO stage, clipping, offload."""
    run_dir: Path | None = None
    """Where the run writes; none given: runs/<date>-<domain>."""
    steps: int | None = None
    """Optimizer steps; none given: --epochs decides."""
    epochs: int = 20
    """Passes over the training users."""
    eval_every: int = 0
    """Steps between evaluations on the validation targets; 0: once an epoch."""
    patience: int = 5
    """Evaluations without a better NDCG@10 before the run stops early; 0: never."""
    eval_batch_size: int = 256
    """Items encoded at once in evaluation."""
    eval_users: int = 0
    """Users of each domain who are asked in validation, drawn by --seed, the same each time; 0: all."""
    test_users: int = 0
    """Users of each domain who are asked in the test at the end, drawn by --seed; 0: all."""
    test_from_cache: bool = False
    """Let the test at the end read what --cache keeps, instead of titles and pictures as a user of the model will have
    them: much faster where towers are frozen, and as rounded as the cache."""
    async_eval: bool = False
    """Validate in a process of its own while training goes on, on a float32 snapshot of the model, without --cache.
    Takes cores, or memory of rank 0's GPU, from training. The next validation waits for it; early stopping acts late by
    the time it takes."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: once an epoch."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    log_every: int = 10
    """Steps between two train lines in metrics.jsonl."""
    resume: bool = False
    """Go on from the newest checkpoint of --run_dir, on any number of ranks and any ZeRO stage that make the same
    global batch."""
    allow_new_batch: bool = False
    """With --resume: go on with another global batch. The rest of the epoch is left out and the next one begins, since
    the order of users follows from the batch; an epoch has another number of steps; learning rates stay as given."""
    resume_or_start: bool = False
    """Go on from the newest checkpoint of --run_dir, or start the run if there is none yet: one command for a loop or a
    requeued job. SIGTERM and SIGUSR1 save and end a run with exit code 85."""
    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    """What a loss or gradient that is NaN or infinite leads to: the end of the run; a step without that batch; or the
    weights of the last checkpoint, with which the run goes on behind that batch."""
    hang_seconds: int = 1800
    """Seconds in which no step, validation or checkpoint ends, after which each rank prints its stacks; 0: never."""
    seed: int = 0
    """Seed of weights, order of users, negatives and dropout."""

    def __post_init__(self) -> None:
        for name in ("epochs", "keep_checkpoints", "log_every", "eval_batch_size"):
            _require(getattr(self, name) >= 1, f"--{name} {getattr(self, name)} must be at least 1")
        for name in ("eval_every", "eval_users", "test_users", "checkpoint_every", "patience", "hang_seconds"):
            _require(getattr(self, name) >= 0, f"--{name} {getattr(self, name)} must not be negative")
        _require(self.steps is None or self.steps >= 1, f"--steps {self.steps} must be at least 1")
        _require(not self.resume or self.run_dir is not None, "--resume needs --run_dir: the run to go on with")
        _require(
            self.resume or self.resume_or_start or not self.allow_new_batch,
            "--allow_new_batch is for a run that goes on: add --resume, or leave it out",
        )
        _require(not self.resume_or_start or self.run_dir is not None, "--resume_or_start needs --run_dir: which run")
        _require(
            not (self.resume and self.resume_or_start),
            "--resume needs a checkpoint and --resume_or_start does not: give one of them",
        )


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-train a recommender on one or several domains.

    Example: deepspeed pretrain/run.py --ds_config ds_configs/zero2.json --data data/mine --run_dir runs/mine
    """

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        if self.model.reads_content and self.model.vision.partition(":")[0] == "region":
            vision = f"--vision {self.model.vision}"
            _require(
                not self.data.naive, f"--naive would run the detector of {vision} at every step: leave --naive out"
            )
            _require(
                self.data.cache, f"{vision} needs --cache: its detector is to see each picture once, not every step"
            )
            _require(
                not self.run.async_eval,
                f"--async_eval reads no cache and would run the detector of {vision} at every validation: leave it out",
            )
        _require(
            not self.run.test_from_cache or self.data.cache or not self.model.reads_content,
            "--test_from_cache needs --cache: there is nothing else to read from",
        )
        if self.data.naive:
            _require(self.optim.loss == "bce", f"--naive with --loss {self.optim.loss}: it needs --loss bce")
            _require(not self.data.cache, "--naive computes the frozen blocks anew each time: leave --cache out")
            _require(self.model.reads_content, "--naive with --item id has nothing to encode: leave --naive out")
            _require(
                self.model.item != "both",
                "--naive gives padding no learned vector, which --item both needs: leave it out",
            )


@dataclass(frozen=True)
class TransferConfig:
    """What a run starts from."""

    init: str = "none"
    """A run directory, a bundle directory or a hub id whose model goes on learning; none: from scratch."""


@dataclass(frozen=True)
class FinetuneConfig(PretrainConfig):
    """Fine-tune a recommender on another domain; settings of the model that are not given are those of --init.

    Example: deepspeed finetune/run.py --ds_config ds_configs/zero2.json --init runs/mine --data data/other
    """

    transfer: TransferConfig = field(default_factory=TransferConfig)


def to_json(config: Any) -> str:
    """A config (nested dataclasses) as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str)


def from_dict(kind: type[ConfigT], values: dict[str, Any], where: str) -> ConfigT:
    """A flat config dataclass from a JSON object; an unknown field is an error that names it and `where` it stood."""
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise UserError(f"{where}: {unknown_name('setting', name, known)}")
    return kind(**values)

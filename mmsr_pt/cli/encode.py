"""`mmsr-pt encode`: the vectors of a catalogue, for recommending from it or for other programs."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from safetensors.torch import save_file

from mmsr_pt.catalogue_index import CatalogueIndex, SearchName
from mmsr_pt.cli.common import open_model, open_plain_model, require, require_file, shown_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.item_list import read_item_list
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.evaluation.table import wide_console

PARQUET, SAFETENSORS = ".parquet", ".safetensors"


def encode_command(
    model: str,
    out: Path,
    data: Path | None = None,
    items: Path | None = None,
    search: SearchName = "auto",
    batch_size: int = 256,
) -> None:
    """Encode every item of a catalogue once: an index to recommend from, or the vectors alone for other programs.

    Example: mmsr-pt encode --model runs/mine --data data/mine --out mine-index

    Args:
        model: A run directory, a bundle directory or a hub id.
        out: A directory for an index (mmsr-pt recommend --index); FILE.parquet for item_id, title and vector by row;
            FILE.safetensors for the vectors [N, D] alone, float32 too.
        data: The domain directory whose items are encoded.
        items: In place of --data a directory with items.csv (item_id, title; or .parquet) and images/<item_id>.jpg:
            items that need no interactions.
        search: How the index is searched: exact, faiss (approximately; its recall is measured and printed), or auto:
            by faiss where there are more than half a million items.
        batch_size: Items encoded at once.
    """
    require((data is None) != (items is None), "give one of --data DOMAIN and --items DIRECTORY")
    require(batch_size >= 1, f"--batch_size {batch_size} must be at least 1")
    if out.suffix in (PARQUET, SAFETENSORS):
        require_file(out, "--out")
    require(out.parent.is_dir(), f"--out {out}: there is no directory {out.parent}; make it first")
    if data is not None:
        domain = Domain.load(data)
        opened = open_model(model, domain).to(processes().device)
        index = opened.index(domain, batch_size, search, shown_source(opened, domain))
    else:
        assert items is not None
        opened = open_plain_model(model).to(processes().device)
        wanted = read_item_list(items, with_images=opened.preprocessor.image is not None)
        index = opened.index(wanted, batch_size, search)
    if processes().is_main_process:
        _write(index, out)
        wide_console().print(f"{len(index):,} items, vectors of {index.vectors.shape[1]}: {out}", markup=False)


def _write(index: CatalogueIndex, out: Path) -> None:
    if out.suffix not in (PARQUET, SAFETENSORS):
        index.save(out)
        return
    temporary = out.with_name(f".{out.name}.new")
    vectors = index.vectors.cpu().contiguous()
    if out.suffix == PARQUET:
        column = pl.Series("vector", vectors.numpy(), dtype=pl.Array(pl.Float32, vectors.shape[1]))
        index.items.with_columns(column).write_parquet(temporary)
    else:
        save_file({"vectors": vectors}, temporary)
    temporary.replace(out)

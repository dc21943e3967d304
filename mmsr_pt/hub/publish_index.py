"""The vectors of a catalogue as a dataset on the hub, for whoever has the model: nothing needs encoding there.

    mmsr-pt encode    --model runs/mine --data data/mine --out mine-index
    mmsr-pt publish   --model runs/mine --index mine-index --repo_id user/mine-vectors
    mmsr-pt recommend --model runs/mine --index user/mine-vectors --history ITEM_ID,ITEM_ID

    index.json  items.parquet  vectors.safetensors  README.md

An index for approximate search is left out: it is no plain data, and is soon made again from the vectors.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from huggingface_hub import DatasetCardData

from mmsr_pt.catalogue_index import ITEMS_FILE, CatalogueIndex
from mmsr_pt.hub.card import CARD_FILE, PAPER
from mmsr_pt.hub.find import HUB_ID
from mmsr_pt.run_dir import write_text


def lay_out_index(
    index: CatalogueIndex, reference: str, directory: Path, repo_id: str, licence: str | None = None
) -> str:
    """Puts all that is published of an index into `directory`, which is empty.

    Args:
        index: of the catalogue.
        reference: the model that made it, as `--model` names it; a hub id stands in the card, a local path does not.
        directory: is there.
        repo_id: what the card's commands call the dataset.
        licence: of the vectors, as the hub spells it.

    Returns:
        In a few words what it is.
    """
    dataclasses.replace(index, approximate=None).save(directory)
    what = f"{index.domain['name'] if index.domain else 'A catalogue'}: {len(index):,} items as vectors"
    is_local = Path(reference).expanduser().exists() or not HUB_ID.fullmatch(reference)
    name = "MODEL" if is_local else reference
    by = "a model of mmsr_pt" if is_local else f"[{name}](https://huggingface.co/{name})"
    write_text(directory / CARD_FILE, _card(index, what, name, by, repo_id, licence))
    return what


def _card(index: CatalogueIndex, what: str, model: str, by: str, repo_id: str, licence: str | None) -> str:
    header = DatasetCardData(
        license=licence or "other",
        # without a name the hub takes "other" for an oversight
        license_name=None if licence else "not-stated",
        tags=["recommender-system", "mmsr_pt", f"arxiv:{PAPER}"],
        configs=[{"config_name": "items", "data_files": ITEMS_FILE}],
    )
    return f"""---
{header.to_yaml()}
---

# {what}

One vector of {index.vectors.shape[1]} numbers for each item, made by {by}, fingerprint
`{index.model[:16]}`. Whoever has that model can recommend from this catalogue without encoding it; with any
other model the vectors mean nothing, and loading them is refused.

```
mmsr-pt recommend --model {model} --index {repo_id} --history ITEM_ID,ITEM_ID
mmsr-pt serve     --model {model} --index {repo_id}
```

```python
from mmsr_pt import MMSRModel

model = MMSRModel.from_pretrained("{model}")
catalogue = model.load_index("{repo_id}")
```

`items.parquet` names the items (`item_id`, `title`), `vectors.safetensors` holds `vectors` [items, width] in float32 in
the same order, `index.json` says of which model and which catalogue they are.

## Source and licence

{_rights(index, licence)}
"""


def _rights(index: CatalogueIndex, licence: str | None) -> str:
    given = (
        f"Published under `{licence}` as far as the publisher can grant it." if licence else "No licence was stated."
    )
    if index.domain is None:
        return f"The items are a list of the publisher's. {given}"
    return (
        f"Titles are those of {index.domain['name']} (`{index.domain['fingerprint'][:16]}`). {index.domain['source']}: "
        f"{index.domain['licence']}. {given}"
    )

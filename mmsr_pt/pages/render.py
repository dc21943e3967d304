"""From a template to a page."""

from __future__ import annotations

import itertools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, page: Any) -> str:
    """The page as HTML; what people wrote is escaped.

    Args:
        template: the file of this package.
        page: what the template calls `page`.
    """
    environment = Environment(
        loader=PackageLoader("mmsr_pt.pages", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = lambda fraction: f"{100 * fraction:.2f}"
    # in the order of the table, where Jinja's own groupby would sort
    environment.filters["by_slice"] = lambda rows: [
        (name, list(beside)) for name, beside in itertools.groupby(rows, key=lambda row: row.slice)
    ]
    return environment.get_template(template).render(page=page)

"""The statements of queries.sql by name."""

from __future__ import annotations

import re
from importlib import resources
from typing import LiteralString, cast


class Queries:
    """`queries["name"]` is the SQL text; an unknown name is a KeyError at once."""

    def __init__(self) -> None:
        text = resources.files("pgherd.store").joinpath("queries.sql").read_text()
        parts = re.split(r"^-- ([a-z_]+) --\n", text, flags=re.MULTILINE)
        self._texts = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))

    def __getitem__(self, name: str) -> LiteralString:
        return cast(LiteralString, self._texts[name])


queries = Queries()

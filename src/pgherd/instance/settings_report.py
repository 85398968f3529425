"""`pgherd settings`: every setting with its value, where it was set, its default and its meaning."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pgherd.instance import effective
from pgherd.settings import Settings


def rows(environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """One dictionary a setting; secret values are hidden."""
    settings = effective.running(environ)
    origins = effective.origins(environ)
    return [
        {
            "name": field.name,
            "value": _shown(field, getattr(settings, field.name)),
            "default": field.default,
            "from": origins[field.name],
            "variable": f"PGHERD_{field.name.upper()}",
            "meaning": field.metadata["meaning"],
        }
        for field in dataclasses.fields(Settings)
    ]


def _shown(field: dataclasses.Field[Any], value: Any) -> Any:
    return "(hidden)" if field.metadata["secret"] and value else value


def render(environ: Mapping[str, str], *, as_json: bool) -> str:
    """As text for people or as JSON."""
    found = rows(environ)
    if as_json:
        return json.dumps(found, indent=2) + "\n"
    lines = []
    for row in found:
        set_by = "default" if row["from"] == "default" else f"{row['from']}; default {json.dumps(row['default'])}"
        lines.append(f"{row['name']} = {json.dumps(row['value'])}  ({set_by})")
        lines.append(f"    {row['meaning']}  [{row['variable']}]")
    where = effective.home_of(environ).config_file
    return "\n".join(lines) + f"\n\nSet them in the environment of `make up`, or for good in {where}.\n"

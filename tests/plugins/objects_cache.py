"""What Swift's proxy asks of a memcached, in its own process: without, each request looks up account and bucket."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


class Cache:
    """The part of `swift.common.memcached.MemcacheRing` that is called; nothing is ever too old, as nothing changes."""

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}

    def get(self, key: str, **_: Any) -> Any:
        """What was set, as JSON has it."""
        return json.loads(self._kept.get(key, "null"))

    def set(self, key: str, value: Any, **_: Any) -> None:
        """Keep it."""
        self._kept[key] = json.dumps(value)

    def delete(self, key: str, **_: Any) -> None:
        """Forget it."""
        self._kept.pop(key, None)


def cached(_: dict[str, str], **__: str) -> Callable[[Any], Any]:
    """The filter's factory, see PasteDeploy."""
    cache = Cache()

    def around(application: Any) -> Any:
        def answer(environ: dict[str, Any], begin: Any) -> Any:
            return application({**environ, "swift.cache": cache}, begin)

        return answer

    return around

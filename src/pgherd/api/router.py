"""Finds the operation of a method and path: one dictionary step a segment, whatever the number of routes."""

from __future__ import annotations

from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from pgherd.contract.document import Route
from pgherd.errors import Fault, Incorrect, NotFound, PgherdError

T = TypeVar("T")


class MethodNotAllowed(PgherdError):
    """The path exists, with other methods."""

    status = 405
    reason = "unsupported"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"The method is not allowed here; allowed: {allowed}.")
        self.allowed = allowed


class _Place(Generic[T]):
    __slots__ = ("below", "methods", "parameter")

    def __init__(self) -> None:
        self.below: dict[str, _Place[T]] = {}
        self.parameter: _Place[T] | None = None
        self.methods: dict[str, tuple[Route, T]] = {}


class Router(Generic[T]):
    """A tree of path segments; at its places stand a route and what belongs to it."""

    def __init__(self) -> None:
        self._root: _Place[T] = _Place()

    def add(self, prefix: str, route: Route, entry: T) -> None:
        """Put `entry` at the route's place. Raises Fault when the place is ambiguous."""
        place = self._root
        for segment in (*prefix.strip("/").split("/"), *route.segments):
            if place.below if segment is None else place.parameter:
                # A fixed segment beside a parameter would need backtracking; neither document has one.
                raise Fault("The API's contract is broken.", detail=f"{route.path} is ambiguous")
            if segment is None:
                place.parameter = place.parameter or _Place()
                place = place.parameter
            else:
                place = place.below.setdefault(segment, _Place())
        if route.method in place.methods:
            raise Fault("The API's contract is broken.", detail=f"{route.method} {route.path} is there twice")
        place.methods[route.method] = (route, entry)
        if route.method == "GET":
            place.methods["HEAD"] = (route, entry)

    def find(self, method: str, raw_path: bytes) -> tuple[Route, T, dict[str, str]]:
        """The route, its entry and the decoded path parameters.

        Each segment is decoded by itself, so that an escaped slash stays inside its segment.
        Raises NotFound, MethodNotAllowed, or Incorrect for a path that is not UTF-8.
        """
        place, values = self._root, []
        for segment in _segments(raw_path):
            below = place.below.get(segment)
            if below is None:
                below = place.parameter
                if below is None or not segment:
                    raise NotFound("There is nothing at this path.")
                values.append(segment)
            place = below
        found = place.methods.get(method)
        if found is None:
            if not place.methods:
                raise NotFound("There is nothing at this path.")
            raise MethodNotAllowed(", ".join(sorted(place.methods)))
        route, entry = found
        return route, entry, dict(zip(route.params, values, strict=True))


def _segments(raw_path: bytes) -> list[str]:
    try:
        if b"%" not in raw_path:
            return raw_path.decode("utf-8").split("/")[1:]
        segments = [unquote_to_bytes(part).decode("utf-8") for part in raw_path.split(b"/")[1:]]
    except UnicodeDecodeError:
        raise Incorrect("The path is not valid UTF-8.") from None
    if any("\0" in segment for segment in segments):
        raise Incorrect("The path holds a NUL character.")
    return segments

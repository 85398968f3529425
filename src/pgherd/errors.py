"""The one exception tree: what went wrong, in the contract's words, with what may be shown outside.

Source of the reasons: `operation.reason` in the OpenAPI document.
"""

from __future__ import annotations


class PgherdError(Exception):
    """An error with a message for the outside and, apart from it, a detail for the log.

    `status` is the HTTP status when it refuses a request; `reason` is the operation's reason when it
    ends one. `message` must hold no secret and no path; `detail` may hold paths but never a secret.
    """

    status = 500
    reason = "fault"

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message if not hint else f"{message} {hint}"
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.message} [{self.detail}]" if self.detail else self.message


class Incorrect(PgherdError):
    """The request is malformed or out of bounds; the message names the field and what is allowed."""

    status = 400
    reason = "incorrect"


class Forbidden(PgherdError):
    """The signature, the key's role or a protection does not allow it."""

    status = 403
    reason = "forbidden"


class NotFound(PgherdError):
    """No such thing for this organization."""

    status = 404
    reason = "not-found"


class Conflict(PgherdError):
    """It is refused because of what exists: a taken name, a limit, an unfinished change."""

    status = 409
    reason = "conflict"


class TooLarge(PgherdError):
    """The request body is over the limit."""

    status = 413
    reason = "incorrect"


class Unsupported(PgherdError):
    """A call or field of the contract that this version does not offer."""

    status = 400
    reason = "unsupported"


class Unavailable(PgherdError):
    """Something that is needed does not answer now; trying again later may help."""

    status = 503
    reason = "unavailable"


class Interrupted(PgherdError):
    """The operation was overtaken, as a create is by a delete."""

    status = 409
    reason = "interrupted"


class Fault(PgherdError):
    """Our own bug or a broken host; never the caller's doing."""


class HostFault(Fault):
    """A step on a host failed: a program ended badly, a file could not be written."""

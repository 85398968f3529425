"""How a command ends: exit codes that scripts can use, and the one error that carries them."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes; docs/cli.md is their reference. `psql` commands end with psql's own code instead."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNREACHABLE = 5
    TIMED_OUT = 6
    INTERRUPTED = 130


class CliError(Exception):
    """A command that cannot go on: what went wrong, and in `hint` what to do next."""

    def __init__(self, code: Exit, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


def code_of(status: int) -> Exit:
    """The exit code for an HTTP status of 400 or more."""
    if status == 404:
        return Exit.NOT_FOUND
    if status < 500:
        return Exit.REFUSED
    return Exit.UNREACHABLE


def hint_for(status: int, message: str, subject: str = "NAME", *, from_file: str = "") -> str:
    """What to do about a refusal, where we know it.

    `subject` is the name that the request was about, `from_file` the instance's own file if the key came from there.
    """
    text = message.lower()
    if status == 403 and "signature" in text:
        if from_file:
            return f"The key in {from_file} is no longer valid, or damaged. `make up` makes another if it was revoked."
        return 'The key or secret is wrong here, or revoked. Try: eval "$(pgherd env)"'
    if status == 403 and "role policy" in text:
        return "This key's role does not allow it. An operator makes another: pgherd key create NAME --role admin"
    if "protected against termination" in text:
        return f"Lift it first: pgherd service update {subject} --no-termination-protection"
    if "service name is already taken" in text:
        return f"Look at it: pgherd service show {subject}"
    if status == 404 and "service does not exist" in text:
        return "See what exists: pgherd service list"
    if status >= 500:
        return "See the API's log and: pgherd doctor"
    return ""

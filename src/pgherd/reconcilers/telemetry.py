"""Metrics get coarser as they get older; questions that nobody waits for any more are forgotten."""

from __future__ import annotations

from pgherd.store.db import Transaction

#: So many periods back a missing mean is made up for, such as after the workers were away.
_BACK = {300: 24, 1800: 8, 7200: 8, 86_400: 3}


def roll_up(tx: Transaction, *steps: int) -> None:
    """The means of each period of `steps` seconds that has ended, the finer ones first."""
    for step in steps:
        tx.row("roll_up_samples", step=step, periods=_BACK[step])


def forget_questions(tx: Transaction) -> None:
    """The API forgets its questions itself unless it died."""
    tx.run("purge_questions")

"""Supervision by s6: `tree` keeps it, `service` is what one process needs, `processes` looks at what lives."""

from pgherd.drivers.supervisor.service import Service
from pgherd.drivers.supervisor.tree import State, Supervisor

__all__ = ["Service", "State", "Supervisor"]

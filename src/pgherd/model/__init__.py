"""Pure knowledge of services, plans, settings and names: no I/O."""

"""Builds the processes from the settings: the modules that name concrete classes, one a process."""

"""One instance on this machine: start, stop, check, and what belongs to its set-up."""

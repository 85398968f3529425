"""`make bench`: what users wait for, beside the floor of the same machine in the same run."""

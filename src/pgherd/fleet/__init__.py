"""The hosts: which one takes a node, and what a node's host is told."""

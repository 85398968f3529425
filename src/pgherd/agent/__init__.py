"""The host side: converges the nodes of one host to their specs and reports what it observes."""

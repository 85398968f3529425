"""One file an operation, in the order it happens: `request` accepts it, `carry_out` makes it true."""

"""`python -m pgherd.api.operations_table [--write] README.md`: the table of operations between its markers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pgherd.api.unavailable import table
from pgherd.contract.document import load_hosted
from pgherd.errors import Incorrect

BEGIN, END = "<!-- operations -->", "<!-- /operations -->"


def replaced(text: str, content: str) -> str:
    """`text` with `content` between the markers. Raises Incorrect when they are not there, once each, in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise Incorrect(f"The text needs the markers {BEGIN} and {END}, once each.")
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def main() -> int:
    """Write the table, or say whether it is the right one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="change the file; otherwise it is only checked")
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    old = arguments.file.read_text()
    new = replaced(old, table(load_hosted()))
    if arguments.write:
        arguments.file.write_text(new)
    elif new != old:
        print(f"{arguments.file}: the table of operations is out of date; repair it with --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

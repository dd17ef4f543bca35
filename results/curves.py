"""Writes the table of all curves that `steve.load_results()` returns.

python results/curves.py
"""

import gzip
import sys
from pathlib import Path

from steve.analysis.published import TABLE, tidy
from steve.analysis.records import find_runs
from steve.command_line import OneLineParser, exit_code
from steve.util import atomic_write

RESULTS = Path(__file__).resolve().parent


def content(folder: Path = RESULTS) -> bytes:
    """The file; the same runs give the same bytes."""
    table = tidy(find_runs([folder]))
    text = table.to_csv(index=False, float_format="%.6g")
    return gzip.compress(text.encode(), mtime=0)


def main() -> int:
    OneLineParser(description=__doc__.split("\n")[0]).parse_args()
    return exit_code("curves.py", lambda: atomic_write(TABLE, content()))


if __name__ == "__main__":
    sys.exit(main())

"""Checks the package's types: python tests/programs/check_types.py [mypy's options]

mypy goes by the names of folders, and that of a checkout may be anything. So it is
shown the checkout under the package's name.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Returns mypy's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "steve").symlink_to(PROJECT)
        command = [sys.executable, "-m", "mypy", "-p", "steve"]
        return subprocess.run(
            [*command, f"--config-file={PROJECT / 'pyproject.toml'}", *sys.argv[1:]],
            env={**os.environ, "MYPYPATH": folder},
            cwd=folder,
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())

"""`moot`, whose output and errors go to files of their own.

python -m tests.integration.apart OUTPUT ERRORS ARGUMENT ...
"""

from __future__ import annotations

import os
import sys

from cli import main as moot


def main() -> None:
    """Run `moot` with the arguments that follow the files."""
    output, errors, *sys.argv[1:] = sys.argv[1:]
    for number, path in ((1, output), (2, errors)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    moot.main()


if __name__ == "__main__":
    main()

"""A program for a fork server: says what it is, then does what it is told."""

import json
import os
import sys
import time

from tests.unit.cli import imported


def main() -> None:
    what, *arguments = sys.argv[1:]
    said = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "arguments": arguments,
        "variable": os.environ.get("OF_A_FORK"),
        "imported_by": imported.BY,
        "random": imported.draw(),
    }
    print(json.dumps(said), flush=True)
    if what == "sleep":
        time.sleep(60)
    elif what == "fail":
        raise ValueError("what went wrong")
    sys.exit(int(what) if what.isdigit() else 0)


if __name__ == "__main__":
    main()

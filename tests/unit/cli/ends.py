"""A program that ends with an exit code, or not at all if that is negative."""

from __future__ import annotations

import sys
import time


def main() -> None:
    """Do so."""
    code = int(sys.argv[1])
    print(f"ending with {code}", flush=True)
    while code < 0:
        time.sleep(0.1)
    sys.exit(code)


if __name__ == "__main__":
    main()

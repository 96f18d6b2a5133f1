"""The agent of `light_agent`, which dies in the middle of its upload.

python -m tests.integration.vanishing_agent agent run NAME ...
"""

from __future__ import annotations

import os
import signal

from adapters.blobs import BlobStore
from schemas import events as e
from tests.integration import light_agent

_store = BlobStore.store
_stored: list[e.BlobRef] = []


def _vanish(self: BlobStore, data: bytes) -> e.BlobRef:
    if _stored:
        print("vanishing with", _stored[0].sha256.hex(), "stored", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    _stored.append(_store(self, data))
    return _stored[0]


def main() -> None:
    """Run `moot` with it."""
    BlobStore.store = _vanish
    light_agent.main()


if __name__ == "__main__":
    main()

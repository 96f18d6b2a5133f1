"""A service on `streams.app` that repeats what it reads, and misbehaves when told to.

It needs Kafka alone. Each record of the ledger's topic is answered by one on the
rewards' topic, in its transaction. What a value begins with says what else happens:

- ``suspend``: the process suspends itself while the transaction is open, once;
- ``late``: it says something more when the offset is committed already.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from pathlib import Path
from typing import Any, Final

from adapters.settings import load_settings
from ledger.signing import SigningKey
from schemas import topics
from streams.app import Service, Source, fail_stop, hold, make_service_with_key, serve

SENT_S: Final = 0.5
"""After so long Kafka has what was sent."""


def echo(service: Service, directory: Path) -> None:
    """Let the service repeat what it reads."""

    async def say(value: bytes) -> None:
        source = Source(topics.LEDGER, 0)
        await service.send_raw(topics.REWARDS, b"key", value, [], source)

    async def suspend(value: bytes) -> None:
        mark = directory / hashlib.sha256(value).hexdigest()
        if not mark.exists():
            mark.touch()
            await asyncio.sleep(SENT_S)
            os.kill(os.getpid(), signal.SIGSTOP)

    @service.app.agent(service.topic(topics.LEDGER), name="echo", concurrency=1)
    async def repeat(stream: Any) -> None:
        async for event in stream.events():
            with fail_stop(hold(event)):
                await say(event.value)
                if event.value.startswith(b"suspend"):
                    await suspend(event.value)
            event.ack()
            await service.commit(has_said=True, is_busy=False)
            if event.value.startswith(b"late"):
                await say(b"more of " + event.value)
                await service.commit(has_said=True, is_busy=False)


def main() -> None:
    """Serve."""
    settings = load_settings()
    service = make_service_with_key("echo", settings, SigningKey(bytes(32)))
    echo(service, service.cache_directory)
    serve(service)


if __name__ == "__main__":
    main()

"""The least that a Faust app with exactly-once can do: read batches, write their bytes.

`moot bench sequencer` runs it as a process, for comparison with the sequencer: the
same consumer, transactions and batches, the same bytes in and out, no work between.
"""

from __future__ import annotations

from typing import Any, Final

from schemas import topics
from streams.app import Batches, Source, fail_stop, make_service, serve
from streams.sequencer import MAX_BATCH

OUTPUT_TOPIC: Final = "bench.passthrough"


def run() -> None:
    """Pass records through until told to stop; ends the process."""
    service = make_service("bench", "SEQUENCER")
    app = service.app

    batches = Batches(MAX_BATCH)

    @app.agent(service.topic(topics.UPDATES), name="bench", concurrency=1)
    async def read(stream: Any) -> None:
        async for event in stream.events():
            await batches.put(event)

    @app.task
    async def pass_through() -> None:
        while True:
            batch = await batches.take()
            with fail_stop(*batch):
                headers = [("count", str(len(batch)).encode())]
                value = b"".join(event.value for event in batch)
                source = Source(topics.UPDATES, batch[0].message.partition)
                key = batch[0].key
                await service.send_raw(OUTPUT_TOPIC, key, value, headers, source)
            await batches.commit(service)

    serve(service)


if __name__ == "__main__":
    run()

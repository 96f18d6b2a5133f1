"""How much memory records that wait for processing may take."""

import streams.app
from adapters.raw_records import MAX_RECORD_BYTES
from adapters.settings import Settings
from streams.sequencer import MAX_BATCH
from tests.builders import make_key


def test_what_waits_in_a_service_is_bounded_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(streams.app, "demand_topics", lambda _: None)
    monkeypatch.setattr(streams.app, "count_partitions", lambda *_: 1)
    settings = Settings(
        bootstrap_servers="127.0.0.1:1",
        schema_registry_url="http://127.0.0.1:1",
        state_directory=tmp_path,
    )
    key = make_key("SEQUENCER")
    service = streams.app.make_service_with_key("waiting", settings, key)
    # In the stream, in the batch that is gathered, and in the one that is worked on.
    held = service.app.conf.stream_buffer_maxsize + 2 * MAX_BATCH
    assert held * MAX_RECORD_BYTES <= 2**28

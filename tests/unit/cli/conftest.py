"""Commands run here without a Kafka, whose records the tests hand them."""

import pytest

from adapters import kafka
from cli import federations


@pytest.fixture(autouse=True)
def _kafka_listens(monkeypatch):
    monkeypatch.setattr(kafka, "demand_listener", lambda _: None)
    monkeypatch.setattr(federations, "list_federations", lambda _: [])

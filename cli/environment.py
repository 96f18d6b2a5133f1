"""Which stack commands use: the environment's, or else that of `moot up`."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapters.settings import Settings


def load_environment() -> None:
    """Default to the stack of `moot up` where the environment names none."""
    if "MOOT_BOOTSTRAP_SERVERS" in os.environ:
        return
    from cli.stack.stack import default_directory, read_endpoints

    endpoints = read_endpoints(default_directory())
    if endpoints is not None:
        for name, value in endpoints.environment().items():
            os.environ.setdefault(name, value)
        os.environ.setdefault(
            "MOOT_STATE_DIRECTORY", str(default_directory() / "services")
        )


def find_kafka() -> Settings:
    """Do as `find_settings`, for what needs Kafka.

    Raises:
        KafkaUnavailableError: nothing listens where it should be.
    """
    from adapters.kafka import demand_listener

    settings = find_settings()
    demand_listener(settings)
    return settings


def find_settings() -> Settings:
    """Return the settings; also set up logging and tracing."""
    from adapters import telemetry
    from adapters.settings import load_settings

    load_environment()
    settings = load_settings()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Our readers report that Kafka is away, and only once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    telemetry.configure("moot", settings.otlp_endpoint)
    return settings

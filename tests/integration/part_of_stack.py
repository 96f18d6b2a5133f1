"""Stacks of fewer services: a test of one service starts that one."""

from __future__ import annotations

import time
from pathlib import Path

from cli.stack.processes import Progress
from cli.stack.stack import LocalStack


class PartOfStack(LocalStack):
    """The stack with some of its services."""

    def __init__(self, directory: Path, *services: str) -> None:
        super().__init__(directory)
        self._services = services

    def _start_all(self, say: Progress) -> None:
        for service in self._services:
            self._spawn(service)
            self._wait_ready(service, say, time.monotonic())

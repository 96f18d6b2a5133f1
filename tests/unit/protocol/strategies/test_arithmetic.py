"""A process that does not compute as IEEE 754 says is told so."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from consumers.node.rechecks import Rechecker
from protocol.strategies import STRATEGIES, move, read_parameters
from protocol.strategies.arithmetic import ArithmeticModeError, verify_arithmetic
from streams import aggregator
from streams.mpc import party
from tests.auditing import audit
from tests.builders import LogBuilder, build_log

torch = pytest.importorskip("torch")
FE_UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}


@pytest.fixture
def flushed():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor always keeps the smallest numbers")
    yield
    torch.set_flush_denormal(False)


def test_this_process_computes_as_ieee_754_says() -> None:
    verify_arithmetic()


@pytest.mark.usefixtures("flushed")
def test_flushing_to_zero_is_noticed() -> None:
    with pytest.raises(ArithmeticModeError, match="flush to zero"):
        verify_arithmetic()


@pytest.fixture(scope="module")
def log() -> LogBuilder:
    """A log that was written while all was well."""
    return build_log(ledger_nodes=())


def test_nobody_who_computes_starts_then(
    log: LogBuilder, flushed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArithmeticModeError):
        audit(log)
    with pytest.raises(ArithmeticModeError):
        Rechecker(log.blobs.fetch)
    settings = SimpleNamespace(demand_minio=lambda: None)
    for module in (aggregator, party):
        monkeypatch.setattr(module, "load_settings", lambda: settings)
    with pytest.raises(ArithmeticModeError):
        aggregator.make_aggregator()
    with pytest.raises(ArithmeticModeError):
        party.make_party("p0")


def test_an_audit_that_cannot_compute_finds_nothing_but_fails(log: LogBuilder) -> None:
    """The fault may come later, with some library: it says nothing of the log."""

    def fetch(ref: Any, *, max_size_bytes: int) -> bytes:
        torch.set_flush_denormal(True)
        return log.blobs.fetch(ref, max_size_bytes=max_size_bytes)

    try:
        with pytest.raises(ArithmeticModeError):
            audit(log, fetch=fetch, jobs=1)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.usefixtures("flushed")
@pytest.mark.parametrize("name", STRATEGIES)
def test_no_strategy_moves_a_model_then(name: str) -> None:
    strategy = STRATEGIES[name]
    with pytest.raises(ArithmeticModeError):
        move(
            strategy,
            np.zeros(3, np.float32),
            np.zeros(3, np.int64),
            num_examples=1,
            fractional_bits=0,
            parameters=read_parameters(strategy, ()),
            moments=tuple(np.zeros(3) for _ in strategy.moments),
            num_weighted_steps=1 if strategy.counts_steps else None,
        )


def test_another_rounding_mode_is_noticed() -> None:
    upward = FE_UPWARD.get(platform.machine())
    name = ctypes.util.find_library("m")
    if upward is None or name is None:
        pytest.skip("the C library's name for it is not known here")
    library = ctypes.CDLL(name)
    before = library.fegetround()
    assert library.fesetround(upward) == 0
    try:
        with pytest.raises(ArithmeticModeError, match="nearest"):
            verify_arithmetic()
    finally:
        library.fesetround(before)
    verify_arithmetic()

"""Every strategy has the same bits everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from protocol.strategies import STRATEGIES
from tests.paths import ROOT, VECTORS
from tests.unit.protocol.strategies import golden

RECORDED = json.loads((VECTORS / "protocol" / "strategies.json").read_text("utf-8"))


def test_every_strategy_has_vectors() -> None:
    assert {vector["strategy"] for vector in RECORDED} == set(STRATEGIES)
    assert set(golden.CHOSEN) == set(STRATEGIES)


@pytest.mark.parametrize("vector", RECORDED, ids=lambda v: v["strategy"])
def test_a_dozen_rounds_end_where_they_were_recorded(vector: dict) -> None:
    chosen = tuple(vector["parameters_micros"].items())
    found = golden.compute_digests(vector["strategy"], chosen)
    assert found == {name: vector[name] for name in vector if name.endswith("sha256")}


def test_they_end_there_without_vector_instructions() -> None:
    core = np._core._multiarray_umath  # type: ignore[attr-defined]
    optional = [name for name in core.__cpu_dispatch__ if core.__cpu_features__[name]]
    if not optional:
        pytest.skip("numpy uses no optional instructions on this processor")
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.protocol.strategies.golden"],
        cwd=ROOT,
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": ",".join(optional)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == RECORDED
    # And they were really off.
    script = (
        "import json, numpy; c = numpy._core._multiarray_umath; "
        "print(json.dumps([n for n in c.__cpu_dispatch__ if c.__cpu_features__[n]]))"
    )
    left = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": ",".join(optional)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(left.stdout) == []

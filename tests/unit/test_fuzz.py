"""Parsers of strangers' bytes stand what is kept and what is drawn, within limits.

`make fuzz` does the same for longer, and goes on from what reaches new code.
"""

import json
import subprocess
import sys

import pytest

from tests.fuzz.__main__ import CORPUS, read_corpus
from tests.fuzz.targets import BY_NAME, TARGETS

NUM_RUNS = 20


@pytest.fixture(scope="module")
def outcome():
    """One run of all of them: in processes that may be lost, as `make fuzz` does."""
    command = [sys.executable, "-m", "tests.fuzz", "--runs", str(NUM_RUNS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return done


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_is_kept_and_what_is_drawn_ends_as_documented(target, outcome):
    said = [x for x in outcome.stdout.splitlines() if x.startswith(f"{target.name} ")]
    assert not said, outcome.stdout
    summary = json.loads(outcome.stdout[outcome.stdout.index("{") :])
    num_kept = len([*target.seeds(), *read_corpus(target.name)])
    assert summary["inputs"][target.name] > num_kept


def test_what_is_kept_belongs_to_a_parser():
    assert {path.stem for path in CORPUS.glob("*")} <= set(BY_NAME)
    assert len(BY_NAME) == len(TARGETS)

"""An agent and what may go wrong around it: users' code, clocks, what is away."""

from __future__ import annotations

import errno
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from confluent_kafka.schema_registry.error import SchemaRegistryError
from urllib3.exceptions import HTTPError

from adapters.attempts import MAX_BEGUN, Attempts
from adapters.blobs import BlobError
from adapters.kafka import KafkaUnavailableError
from producers.agent import agent as agents
from protocol.encoding import parse_update
from protocol.exchanged_state import model_from_blob
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import LogBuilder
from tests.unit.producers.modes.test_mpc import Process, World, record_of

ME = "ada"


@pytest.fixture(scope="module")
def log():
    log = LogBuilder(ledger_nodes=())
    log.found()
    log.admit("ada", "bea", "cleo")
    log.request_round()
    return log


@pytest.fixture
def started(log):
    return next(x for x in log.leaves if isinstance(x, e.RoundStarted))


class Trainer(ModuleType):
    """`producers.agent.training`, as users' code makes it behave."""

    def __init__(self, outcome):
        super().__init__("producers.agent.training")
        self.outcome = outcome
        self.seen = []

    def train(self, **options):
        self.seen.append(options)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return SimpleNamespace(**{"tensors": options["base"], **self.outcome})


class Agent(Process):
    """One life of an agent that trains as any does."""

    _train = agents.Agent._train

    def __init__(self, directory, *args, **options):
        super().__init__(directory, *args, **options)
        self._attempts = Attempts(directory)
        self._open, self._not_before_s = None, 0.0


@pytest.fixture
def make(tmp_path, log, monkeypatch):
    """Return what makes an agent; its trainer's outcome is numbers, or an error."""

    def make(outcome=None, *, name="agent", **changes):
        if not isinstance(outcome, BaseException):
            outcome = {"loss": 0.5, "num_examples": 12} | (outcome or {})
        trainer = Trainer(outcome)
        monkeypatch.setitem(sys.modules, "producers.agent.training", trainer)
        monkeypatch.setattr(agents, "load_class", lambda path, _: path)
        config = next(x for x in log.leaves if isinstance(x, e.FederationConfigured))
        config = replace(config, **changes)
        world = World(tmp_path / name, config)
        world.blobs = type(log.blobs)(log.blobs)
        life = Agent(world.directory, config, world.blobs, world.said)
        life.trainer = trainer
        return life, world

    return make


def hear(life, *facts):
    """Let an agent hear facts, and act once it has heard them all."""
    for fact in facts:
        life._hear(record_of(fact))
    life._answer_open()


# Numbers


@pytest.mark.parametrize(
    ("loss", "micros"),
    [
        (0.25, 250_000),
        (None, None),  # what optimises itself need not say one
        (np.float32(0.25), 250_000),
        (np.array([0.25]), 250_000),
        (9.2e12, 9_200_000_000_000_000_000),
        *((loss, None) for loss in (1e13, -1e13, 1e300, 10**20)),
    ],
)
def test_a_loss_that_fits_no_long_ends_no_agent(make, started, loss, micros):
    """It only informs. An agent that died of it died of it at every start."""
    life, world = make({"loss": loss})
    life.hear(started)
    (update,) = world.said
    assert isinstance(update, e.UpdateSubmitted)
    assert update.loss_micros == micros
    assert codec.decode(codec.encode(update)) == update


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        *(({"loss": x}, Reason.NOT_FINITE) for x in (float("nan"), float("inf"))),
        *(
            ({"loss": x}, Reason.TRAINING_FAILED)
            for x in (True, "0.5", [], np.zeros(2))
        ),
        *(
            ({"num_examples": x}, Reason.TRAINING_FAILED)
            for x in (0, -1, 2**31, 10**30, 1.5, True, None, np.zeros(2))
        ),
    ],
)
def test_numbers_that_are_none_are_declined_with_a_reason(
    make, started, outcome, reason
):
    life, world = make(outcome)
    life.hear(started)
    (declined,) = world.said
    assert isinstance(declined, e.UpdateDeclined)
    assert declined.reason == reason
    assert codec.decode(codec.encode(declined)) == declined


# Strategies


def moved(tensors):
    """Return what training made of a model: every value moved by a half."""
    return {n: array + np.float32(0.5) for n, array in tensors.items()}


def decode_values(world, answer):
    """Return what an answer's update says of the model's values, in floats."""
    blob = world.blobs[answer.update.sha256]
    values = parse_update(blob, num_parameters=world.config.num_parameters)
    return values / 2**world.config.fractional_bits


def test_an_update_is_divided_by_its_steps_where_they_are_counted(make, started):
    for number, (strategy, steps) in enumerate([("FEDNOVA", 4), ("FEDAVG", None)]):
        life, world = make(name=f"agent{number}", strategy=strategy)
        base = model_from_blob(world.blobs[started.base_model.sha256]).tensors
        life.trainer.outcome |= {"num_steps": 4, "tensors": moved(base)}
        for _ in range(2):  # the second time from its disk
            life.hear(started)
            (answer,) = world.said
            assert answer.num_steps == steps
            expected = 0.5 / (steps or 1)
            assert set(decode_values(world, answer).tolist()) == {expected}
            world.said.clear()
            for path in world.directory.glob("round-*"):
                path.unlink()


def test_an_agent_that_took_more_steps_than_allowed_says_so_many(make, started):
    chosen = (e.StrategyParameter(name="max_steps", value_micros=2_500_000),)
    life, world = make(strategy="FEDNOVA", strategy_parameters=chosen)
    base = model_from_blob(world.blobs[started.base_model.sha256]).tensors
    life.trainer.outcome |= {"num_steps": 9, "tensors": moved(base)}
    life.hear(started)
    (answer,) = world.said
    assert answer.num_steps == 2
    assert set(decode_values(world, answer).tolist()) == {0.25}


@pytest.mark.parametrize("steps", [0, -1, 2**31, 1.5, None])
def test_steps_that_are_none_are_declined(make, started, steps):
    life, world = make({"num_steps": steps}, strategy="FEDNOVA")
    life.hear(started)
    (declined,) = world.said
    assert declined.reason == Reason.TRAINING_FAILED
    assert "optimiser steps" in declined.detail


def test_training_is_held_back_as_the_strategy_says(make, started):
    chosen = (e.StrategyParameter(name="mu", value_micros=250_000),)
    for number, (changes, weight) in enumerate(
        [
            ({"strategy": "FEDPROX", "strategy_parameters": chosen}, 0.25),
            ({"strategy": "FEDPROX"}, 0.01),
            ({"strategy": "FEDADAM"}, 0.0),
        ]
    ):
        life, _ = make(name=f"agent{number}", **changes)
        life.hear(started)
        (options,) = life.trainer.seen
        assert options["proximal_weight"] == weight
        assert set(options["held_back"]) == {"bias", "weight"}


# Users' code


class UnspeakableError(Exception):
    def __str__(self):
        raise SystemExit(7)


@pytest.mark.parametrize(
    "error",
    [
        *(SystemExit(0), GeneratorExit(), RecursionError(), MemoryError()),
        *(ImportError("x"), StopIteration(), AssertionError(), DeprecationWarning()),
        *(IndexError(), OSError("a file of mine"), UnspeakableError()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_users_code_raises_is_declined_by_its_name(make, started, error):
    life, world = make(error)
    life.hear(started)
    (declined,) = world.said
    assert declined.reason == Reason.TRAINING_FAILED
    assert declined.detail == type(error).__name__
    assert not list(world.directory.glob("*.begun"))


def test_an_agent_may_be_interrupted(make, started):
    life, world = make(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        life.hear(started)
    assert world.said == []


def test_a_task_that_ends_its_process_each_time_is_declined_in_the_end(
    make, started, monkeypatch
):
    """Native code that crashes, or more memory than there is."""

    class KilledError(BaseException):
        """As if: nothing of ours runs after it."""

    life, world = make(MemoryError())
    with monkeypatch.context() as patch:
        patch.setattr(agents, "running_users_code", _nothing)
        patch.setattr(Attempts, "end", lambda *_: None)
        life.trainer.outcome = KilledError()
        for _ in range(MAX_BEGUN):
            with pytest.raises(KilledError):
                life.hear(started)
    assert world.said == []
    life.hear(started)
    (declined,) = world.said
    assert declined.detail == f"the task ended the agent's process {MAX_BEGUN} times"
    # Only of this round: the next one is another attempt.
    life.trainer.outcome = {"loss": 0.5, "num_examples": 12}
    life.hear(replace(started, round=2, cause=b"\1" * 32))
    assert isinstance(world.said[-1], e.UpdateSubmitted)


class _nothing:  # noqa: N801  # stands for a function
    def __enter__(self):
        pass

    def __exit__(self, *_):
        return False


# Clocks


@pytest.mark.parametrize("skew_s", [-(10**9), -3_600, 0, 3_600, 10**9])
def test_an_agents_clock_is_compared_with_nobodys(
    make, started, log, monkeypatch, skew_s
):
    """One that was an hour ahead said nothing in any round, for ever."""
    now_ns = (log.now_ms + skew_s * 1_000) * 1_000_000
    clock = SimpleNamespace(
        time_ns=lambda: now_ns, time=lambda: now_ns / 1e9, monotonic=lambda: 5.0,
        sleep=lambda _: None,
    )  # fmt: skip
    monkeypatch.setattr(agents, "time", clock)
    life, world = make()
    hear(life, started)
    (update,) = world.said
    assert isinstance(update, e.UpdateSubmitted)
    # It may train for as long as the round lasts, from when it heard of it.
    (options,) = life.trainer.seen
    assert options["timeout_s"] == world.config.round_duration_ms / 1_000


def facts_that_end(started):
    common = {"federation_id": started.federation_id, "round": started.round,
              "cause": bytes(32), "cause_leaf_index": 9, "output_index": 0}  # fmt: skip
    yield e.RoundAbandoned(**common, reason="OPERATOR_ABANDONED", detail="")
    yield e.RoundSealed(
        **common, num_contributions=0, contributions_sha256=bytes(32), num_examples=0,
        base_model=started.base_model, fractional_bits=20, num_parameters=6,
    )  # fmt: skip
    yield e.ContributionRejected(
        **common, agent_id=ME, update_leaf_index=9, reason="NO_ANSWER", detail=""
    )
    yield replace(started, round=2, cause=b"\1" * 32, last_ticket=bytes(32))


@pytest.mark.parametrize("number", range(4))
def test_a_round_is_over_when_the_decider_has_said_so(make, started, number):
    life, world = make()
    hear(life, started, list(facts_that_end(started))[number])
    assert world.said == []
    assert life.trainer.seen == []


def test_what_the_decider_says_of_others_ends_nothing(make, started):
    *_, mine, _ = facts_that_end(started)
    life, world = make()
    hear(life, started, replace(mine, agent_id="bea"), replace(mine, round=7))
    assert len(world.said) == 1


# What is away


OUTAGES = [
    KafkaUnavailableError("silent"),
    SchemaRegistryError(503, 50301, "not ready"),
    HTTPError("MinIO is away"),
    OSError(errno.ENOSPC, "No space left on device"),
    *(BlobError(reason, "not there") for reason in
      (Reason.MISSING_BLOB, Reason.CORRUPT_BLOB, Reason.OVERSIZED_BLOB)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "error"),
    [
        *(("publish", error) for error in OUTAGES[:2]),
        *(("store", error) for error in OUTAGES[2:4]),
        *(("fetch", error) for error in OUTAGES[2:]),
    ],
    ids=repr,
)
def test_what_is_away_is_waited_for(make, started, monkeypatch, caplog, error, where):
    life, world = make()
    target = life._publisher if where == "publish" else life._store
    work = getattr(target, where)

    def away(*_, **__):
        raise error

    monkeypatch.setattr(target, where, away, raising=False)
    for _ in range(3):
        hear(life)
        life._not_before_s = 0.0
        hear(life, *([started] if life._open is None else []))
    assert world.said == []
    assert "round 1 waits: " in caplog.text
    monkeypatch.setattr(target, where, work, raising=False)
    life._not_before_s = 0.0
    life._answer_open()
    (update,) = world.said
    assert isinstance(update, e.UpdateSubmitted)


def test_nothing_is_waited_for_once_the_round_is_over(make, started, caplog):
    life, world = make()
    model = life._store.pop(started.base_model.sha256)
    hear(life, started)
    assert life._open is not None
    hear(life, next(facts_that_end(started)))
    assert life._open is None
    life._store[started.base_model.sha256] = model
    life._answer_open()
    assert world.said == []


def test_it_does_not_ask_all_the_time(make, started, monkeypatch):
    life, _ = make()
    del life._store[started.base_model.sha256]
    monkeypatch.setattr(agents, "time", SimpleNamespace(monotonic=lambda: 100.0))
    hear(life, started)
    assert life._not_before_s == 100.0 + agents.TRY_AGAIN_AFTER_S
    monkeypatch.setattr(life, "_act_on", lambda *_: pytest.fail("it asked"))
    life._answer_open()


def test_a_base_model_that_is_none_is_declined(make, started):
    """Its bytes are what the round says, and they never will be a model."""
    life, world = make()
    bad = life._store.store(b"no model")
    life.hear(replace(started, base_model=bad))
    (declined,) = world.said
    assert isinstance(declined, e.UpdateDeclined)


def test_a_bug_of_ours_costs_one_round(make, started, monkeypatch, caplog):
    life, world = make()
    monkeypatch.setattr(life, "_compute_leaf_hash", lambda _: 1 // 0)
    hear(life, started)
    assert world.said == []
    assert "round 1: this agent cannot answer" in caplog.text
    monkeypatch.undo()


def test_the_base_model_of_the_tests_is_one(log, started):
    assert model_from_blob(log.blobs[started.base_model.sha256]).tensors

"""What the exporter does with a model that cannot be exported, and with an outage."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest
from confluent_kafka.schema_registry.error import SchemaRegistryError
from urllib3.exceptions import HTTPError

from adapters.attempts import MAX_BEGUN, Attempts
from adapters.blobs import BlobError
from adapters.kafka import END, IDLE, KafkaUnavailableError
from consumers.export import exporter
from consumers.export.apart import ChildError, Ending, Measured, Outcome
from consumers.export.exporter import NUM_TRIES, Exporter
from protocol.validation import find_problem
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import BlobDict

METRICS = {"val_accuracy": 0.75, "val_loss": 0.5}


def exported(onnx=b"onnx", num_examples=4, **changes):
    measured = Measured(
        metrics=METRICS | changes, directions={}, num_examples=num_examples
    )
    return Outcome(ending=Ending.EXPORTED, onnx=onnx, measured=measured)


GOOD = exported()
TASK = e.Task(
    module="clinic:Model",
    module_config="{}",
    data_module="clinic:Examples",
    data_config="{}",
    local_epochs=1,
)


class Publisher:
    """Takes what is published; first it is away, as often as it is told."""

    def __init__(self, *errors):
        self.claims = []
        self.errors = list(errors)

    def publish(self, claim, _key, _genesis, *, traceparent):
        assert traceparent
        if self.errors:
            raise self.errors.pop(0)
        assert find_problem(claim) is None
        self.claims.append(claim)


class Process:
    """What exports: for each round its outcomes, one after the other."""

    def __init__(self, **outcomes):
        self.outcomes = outcomes
        self.seen = []

    def start(self):
        pass

    def end(self):
        pass

    def export(self, task, model, should_stop):
        assert task.module == TASK.module
        assert not should_stop()
        name = model.decode()
        self.seen.append(name)
        outcome = next(iter(self.outcomes.get(name, [])), GOOD)
        if len(self.outcomes.get(name, [])) > 1:
            self.outcomes[name].pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class World:
    """What outlives an exporter: the store, its directory, what it said."""

    def __init__(self, monkeypatch, directory, process, *errors):
        self.store = BlobDict()
        self.directory = directory
        self.publisher = Publisher(*errors)
        self.process = process
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(exporter, "AGAIN_S", 0.01)
        monkeypatch.setattr(exporter, "_sleep", lambda *_: None)
        self.published = [self._publish(number) for number in (1, 2)]

    def _publish(self, number):
        ref = self.store.store(f"model{number}".encode())
        return SimpleNamespace(federation_id="fed", round=number, model=ref, task=TASK)

    def start(self, pauses=50):
        """Run an exporter until it has nothing more to hear."""
        one = Exporter.__new__(Exporter)  # without Kafka
        one._settings = one._registry = one._federation_id = one._key = None
        one._allowed_prefixes = ("clinic",)
        one._publisher, one._store = self.publisher, self.store
        one._genesis, one._max_model_size = bytes(32), 100
        one._attempts, one._process = Attempts(self.directory), self.process
        one._waiting, one._not_before_s = {}, {}
        said = {claim.round for claim in self.publisher.claims}

        def follow(*_):
            for published in self.published:
                if published.round not in said:
                    one._waiting[published.round] = published, ""
            yield END
            for _ in range(pauses):
                yield IDLE

        self.monkeypatch.setattr(exporter, "follow_log", follow)
        one.run(lambda: False)
        return self

    @property
    def said(self):
        return [
            (claim.round, str(claim.no_onnx), str(claim.no_evaluation))
            for claim in self.publisher.claims
        ]


@pytest.fixture
def make_world(monkeypatch, tmp_path):
    def make(*errors, **outcomes):
        return World(monkeypatch, tmp_path / "exporter", Process(**outcomes), *errors)

    return make


BAD = (1, "NOT_EXPORTABLE", "NOT_MEASURED")
FINE = (2, "", "")


def refused(why="a NaN"):
    return Outcome(ending=Ending.REFUSED, why=why)


def failed():
    return Outcome(ending=Ending.FAILED, why="it was ended by SIGKILL")


def waits():
    return Outcome(ending=Ending.WAITS, why="No space left on device")


def test_a_model_that_cannot_be_exported_is_said_to_be_so_and_the_next_is_exported(
    make_world, caplog
):
    """One agent's update can make a model whose logits are no numbers."""
    world = make_world(model1=[refused()]).start()
    assert world.said == [BAD, FINE]
    assert world.process.seen == ["model1", "model2"]
    assert "round 1: not exported: a NaN" in caplog.text
    assert list(world.directory.iterdir()) == []


def test_a_model_that_ends_its_process_is_tried_again_and_then_said(make_world):
    world = make_world(model1=[failed()]).start()
    assert world.said == [BAD, FINE]
    assert world.process.seen == ["model1"] * NUM_TRIES + ["model2"]


def test_a_process_may_end_once_for_want_of_memory(make_world):
    world = make_world(model1=[failed(), GOOD]).start()
    assert world.said == [(1, "", ""), FINE]


class KilledError(BaseException):
    """This process is gone; no handler of ours may see it."""


def test_a_model_that_ends_the_exporter_too_is_given_up_in_the_end(make_world, caplog):
    world = make_world(model1=[KilledError()])
    for _ in range(MAX_BEGUN):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Attempts, "end", lambda *_: None)  # it never gets there
            with pytest.raises(KilledError):
                world.start()
    assert world.said == []
    world.start()
    assert world.said == [BAD, FINE]
    assert "each time that it was begun, this exporter ended" in caplog.text


def test_what_is_measured_but_not_exported_or_the_reverse_says_so(make_world, caplog):
    unmeasured = Outcome(
        ending=Ending.EXPORTED, onnx=b"onnx", why="not measured: a label is -1"
    )
    world = make_world(model1=[unmeasured], model2=[exported(onnx=b"")]).start()
    assert world.said == [(1, "", "NOT_MEASURED"), (2, "NOT_EXPORTABLE", "")]
    assert [claim.onnx is None for claim in world.publisher.claims] == [False, True]
    assert "round 1: not measured: a label is -1" in caplog.text


# Outages


@pytest.mark.parametrize("pauses", [0, 1])
def test_a_full_disk_is_waited_for_and_others_are_taken_meanwhile(
    make_world, caplog, pauses
):
    world = make_world(model1=[waits()]).start(pauses=pauses)
    assert world.said == [FINE]
    assert "round 1: not exported yet: No space left" in caplog.text
    world.process.outcomes = {}
    world.start()
    assert world.said == [FINE, (1, "", "")]


@pytest.mark.parametrize("reason", ["MISSING_BLOB", "CORRUPT_BLOB", "OVERSIZED_BLOB"])
def test_a_model_that_is_not_there_yet_is_not_said_to_be_unfit(
    make_world, monkeypatch, caplog, reason
):
    """It may be fetched tomorrow, and a version is registered once."""
    world = make_world()
    fetch = BlobDict.fetch

    def fail(self, ref, *, max_size_bytes):
        if ref == world.published[0].model:
            raise BlobError(Reason(reason), "no blob")
        return fetch(self, ref, max_size_bytes=max_size_bytes)

    monkeypatch.setattr(BlobDict, "fetch", fail)
    assert world.start().said == [FINE]
    assert "round 1: not exported yet: no blob" in caplog.text
    monkeypatch.setattr(BlobDict, "fetch", fetch)
    assert world.start().said == [FINE, (1, "", "")]


def test_a_model_that_is_too_large_for_ever_is_said_to_be_so(make_world):
    world = make_world()
    world.published[0].model = e.BlobRef(uri="", sha256=bytes(32), size_bytes=101)
    assert world.start().said == [BAD, FINE]


OUTAGES = [
    KafkaUnavailableError("silent"),
    SchemaRegistryError(503, 50301, "not ready"),
    HTTPError("MinIO is away"),
    OSError(errno.ENOSPC, "No space left on device"),
]


@pytest.mark.parametrize("error", OUTAGES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["publish", "fetch", "store", "export"])
def test_an_outage_is_waited_for_and_nobodys_fault(
    make_world, monkeypatch, caplog, error, where
):
    left = [error, error]
    world = make_world(*(left if where == "publish" else []))
    if where == "export":
        world.process.outcomes["model1"] = [error, error, GOOD]
    elif where != "publish":
        work = getattr(BlobDict, where)

        def away(*args, **options):
            if left:
                raise left.pop()
            return work(*args, **options)

        monkeypatch.setattr(BlobDict, where, away)
    assert world.start().said == [(1, "", ""), FINE]
    assert caplog.text.count("waiting: ") == 2


def test_what_nobody_foresaw_costs_its_model_alone(make_world, caplog):
    world = make_world(model1=[ZeroDivisionError()]).start()
    assert world.said == [BAD, FINE]
    assert "ZeroDivisionError" in caplog.text


def test_a_broken_installation_is_no_models_fault(make_world):
    world = make_world(model1=[ChildError("torch is not there")])
    with pytest.raises(ChildError):
        world.start()
    assert world.said == []


# Numbers


@pytest.mark.parametrize(
    ("change", "metrics"),
    [
        ({}, {"accuracy": 750_000, "loss": 500_000}),
        ({"val_loss": 9e12}, {"accuracy": 750_000, "loss": 9 * 10**18}),
        *(
            ({"val_loss": loss}, {"accuracy": 750_000})
            for loss in (1e13, 1e300, float("inf"), float("nan"), None, True, "4", [])
        ),
    ],
)
def test_metrics_are_millionths_or_left_out(make_world, change, metrics):
    world = make_world(model1=[exported(**change)]).start()
    found = world.publisher.claims[0].evaluation
    assert {m.name: m.value_micros for m in found.metrics} == metrics


@pytest.mark.parametrize(
    "change",
    [
        *({"num_examples": n} for n in (0, -3, 2**63, 1.5, True, None, "4")),
        *(
            {"val_accuracy": n, "val_loss": n}
            for n in (float("nan"), 1e300, None, [], True)
        ),
    ],
)
def test_numbers_that_are_none_leave_a_version_without_metrics(make_world, change):
    world = make_world(model1=[exported(**change)]).start()
    assert world.said == [(1, "", "NOT_MEASURED"), FINE]

"""A waiting round is compared again and again, and nobody waits for that."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from adapters import alive
from adapters.modes.mpc.link import LinkError, LinkFailure
from protocol.modes.mpc.configuration import list_parties
from protocol.modes.mpc.party_memory import PartyRefusesError, RefusalCode
from protocol.modes.mpc.round import MpcRound
from schemas import events as e
from streams.mpc import comparing, robustness
from streams.mpc.comparing import Comparer, make_link_plan
from streams.mpc.robustness import RobustnessError, RobustnessFailure
from tests.mpc_rounds import make_mpc_round
from tests.simulation.federation import (
    BASE,
    COMPARING_CONFIG,
    COMPARISON,
    GENESIS,
    PARTIES,
    edit,
    make_key,
)

AWAY = LinkError(LinkFailure.NOT_REACHED, 1, "away")
BROKEN = RobustnessError(RobustnessFailure.OTHER_BITS, "party 1")
REFUSES = PartyRefusesError(RefusalCode.COMPARED_TOO_OFTEN, "8 times")
WAIT_S = 5


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Retry at once; no thread goes on comparing after its test."""
    monkeypatch.setattr(comparing, "RETRY_S", 0.01)
    make, made = Comparer.__init__, []

    def note(comparer, attempt):
        made.append(comparer)
        make(comparer, attempt)

    monkeypatch.setattr(Comparer, "__init__", note)
    yield
    for comparer in made:
        for key in tuple(comparer._waiting):
            comparer.look(None, record(key))


SEALED = e.RoundSealed(
    federation_id="clinics", round=1, cause=bytes(32), cause_leaf_index=2,
    output_index=0, num_contributions=0, contributions_sha256=bytes(32),
    num_examples=0, base_model=BASE, fractional_bits=0, num_parameters=4,
)  # fmt: skip


def make_round(name: str = "clinics", number: int = 1, **changes) -> MpcRound:
    common = {"federation_id": name, "round": number, "output_index": 0}
    started = e.RoundStarted(
        **common, cause=bytes(32), cause_leaf_index=0, num_drawn=0,
        cohort_seed=bytes(32), last_ticket=bytes(32),
        base_version=0, base_model=BASE, task=COMPARING_CONFIG.task, num_parameters=4,
        fractional_bits=0, deadline_ms=0,
    )  # fmt: skip
    comparison = e.ComparisonStarted(
        **common, cause=f"{name}{number}".encode(), cause_leaf_index=1,
        agent_ids=("ana",), far_threshold=9,
    )  # fmt: skip
    config = replace(COMPARING_CONFIG, federation_id=name)
    return make_mpc_round(config, started, **{"comparison": comparison, **changes})


def record(key: bytes = b"clinics", trace: str = "1") -> SimpleNamespace:
    return SimpleNamespace(
        key=key, headers={"traceparent": f"00-{trace * 32}-{'2' * 16}-01"}
    )


class Attempts:
    """What was tried, and what comes of it."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.tried = []
        self.more = threading.Condition()

    def __call__(self, secret, traceparent):
        with self.more:
            self.tried.append((secret.config.federation_id, secret.started.round))
            self.traceparent = traceparent
            self.more.notify_all()
            outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome

    def wait(self, count):
        with self.more:
            assert self.more.wait_for(lambda: len(self.tried) >= count, WAIT_S)
        return self.tried[:count]

    def demand_no_more(self, count, seconds=0.2):
        with self.more:
            assert not self.more.wait_for(lambda: len(self.tried) > count, seconds)


def test_whoever_is_away_is_waited_for_in_a_thread_of_its_own():
    attempts = Attempts(AWAY, BROKEN)
    comparer = Comparer(attempts)
    comparer.look(make_round(), record())
    assert attempts.wait(3) == [("clinics", 1)] * 3
    attempts.demand_no_more(3)


def test_a_party_that_has_answered_is_needed_until_the_others_have(monkeypatch):
    monkeypatch.setattr(comparing, "AGAIN_S", 0.05)
    attempts = Attempts()
    comparer = Comparer(attempts)
    comparer.look(make_round(), record())
    attempts.wait(2)
    comparer.look(make_round(has_all_comparisons=True), record())
    count = len(attempts.tried) + 1  # one may have begun
    attempts.demand_no_more(count)


@pytest.mark.parametrize(
    "over",
    [
        None,
        make_round(comparison=None),
        make_round(has_all_comparisons=True),
        make_round(sealed=SEALED),
    ],
)
def test_a_round_that_does_not_wait_is_not_compared(over):
    attempts = Attempts()
    Comparer(attempts).look(over, record())
    attempts.demand_no_more(0)


def test_a_round_that_was_given_up_is_not_tried_again():
    attempts = Attempts(*[AWAY] * 1_000)
    comparer = Comparer(attempts)
    comparer.look(make_round(), record())
    attempts.wait(3)
    comparer.look(None, record())
    attempts.demand_no_more(len(attempts.tried) + 1)
    comparer.look(make_round(number=2), record())
    assert attempts.wait(len(attempts.tried) + 1)[-1] == ("clinics", 2)


def test_what_a_party_refuses_ends_that_round_alone(caplog):
    attempts = Attempts(REFUSES)
    comparer = Comparer(attempts)
    comparer.look(make_round(), record())
    attempts.wait(1)
    comparer.look(make_round(), record())
    attempts.demand_no_more(1)
    comparer.look(make_round(number=2), record())
    assert attempts.wait(2)[-1] == ("clinics", 2)
    assert "COMPARED_TOO_OFTEN" in caplog.text


def test_federations_take_turns():
    attempts = Attempts(*[AWAY] * 100)
    comparer = Comparer(attempts)
    comparer.look(make_round("a"), record(b"a"))
    comparer.look(make_round("b"), record(b"b"))
    assert {name for name, _ in attempts.wait(6)[2:]} == {"a", "b"}


def test_a_round_keeps_its_first_trace():
    attempts = Attempts(AWAY, AWAY)
    comparer = Comparer(attempts)
    comparer.look(make_round(), record(trace="a"))
    comparer.look(make_round(), record(trace="b"))
    attempts.wait(3)
    assert attempts.traceparent.startswith("00-aaaa")


def fail(_ask, error):
    raise error


@pytest.mark.parametrize(
    "error", [ValueError("a shape"), UnicodeError("a name"), OverflowError("a port")]
)
def test_what_others_say_ends_the_process_that_computes_alone(error):
    """Whoever founds a federation chooses its other parties, and what they say."""
    with pytest.raises(RobustnessError) as caught:
        robustness._run_in_process(fail, error)
    assert caught.value.reason == RobustnessFailure.PROCESS_DIED


@pytest.mark.parametrize("error", [ZeroDivisionError(), IndexError(), ValueError()])
def test_what_nobody_expected_costs_its_comparison_alone(error, caplog):
    """It may be of this one's making, and would be there at every start."""
    attempts = Attempts(error)
    comparer = Comparer(attempts)
    comparer.look(make_round(), record())
    attempts.wait(1)
    comparer.look(make_round("others"), record(b"others"))
    attempts.wait(2)
    assert "not compared" in caplog.text


def test_a_lack_of_memory_ends_the_process(monkeypatch):
    ended = threading.Event()

    def end():
        ended.set()
        threading.Event().wait()  # as if: nothing comes after it

    monkeypatch.setattr(alive, "end_process", end)
    Comparer(Attempts(MemoryError())).look(make_round(), record())
    assert ended.wait(WAIT_S)


def test_parties_have_their_order_and_the_dealer_the_last_rank():
    for rank, name in enumerate((*PARTIES, "dealer")):
        key = make_key(name)
        plan = make_link_plan(COMPARING_CONFIG, GENESIS, key.public_key, key.seed)
        assert plan is not None
        assert plan.rank == rank
        assert plan.peers[0].host == "p0.example.org"
        assert {peer.port for peer in plan.peers[:-1]} == {7500}
        assert plan.peers[-1].public_key == COMPARISON.dealer_key
    stranger = make_key("stranger")
    plan = make_link_plan(COMPARING_CONFIG, GENESIS, stranger.public_key, stranger.seed)
    assert plan is None


def test_an_ip_v6_address_is_an_address():
    first, *others = list_parties(COMPARING_CONFIG)
    config = edit(
        COMPARING_CONFIG, parties=(replace(first, address="[::1]:7500"), *others)
    )
    key = make_key("p0")
    plan = make_link_plan(config, GENESIS, key.public_key, key.seed, "0.0.0.0")
    assert plan is not None
    assert (plan.peers[0].host, plan.peers[0].port) == ("::1", 7500)
    assert plan.listen_host == "0.0.0.0"

"""Parties and a dealer, each a process, find out which updates are far apart, or say
why not.

Nothing here needs Kafka.
"""

import io
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from multiprocessing import forkserver
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from adapters.modes.mpc.link import LinkError, LinkFailure, LinkPlan, PartyLink, Peer
from cli.stack.processes import ONE_THREAD
from protocol.modes.mpc.far_pairs import MAX_FAR_THRESHOLD, flag
from protocol.modes.mpc.sketches import NUM_BUCKETS, Sketch, compute_threshold
from streams.mpc import robustness
from streams.mpc.robustness import (
    MAX_COMPARED,
    RobustnessError,
    RobustnessFailure,
    UnsafeConfigurationError,
    UnsafeSetting,
    check_configuration,
    find_far,
    run_dealer,
    run_find_far,
    serve_dealer,
)

CRYPTEN = "streams.mpc.crypten_link"
FORKS = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def _forks():
    """What computes in a process of its own begins there with CrypTen loaded."""
    FORKS.set_forkserver_preload(["pytest", CRYPTEN, __name__])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ONE_THREAD.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    with pytest.MonkeyPatch.context() as patch:
        loaded = SimpleNamespace(get_context=lambda _: FORKS)
        patch.setattr(robustness, "multiprocessing", loaded)
        yield


CONTEXT = b"round 7"
THRESHOLD = 1_000_000


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_plans(num_parties, **settings):
    """Return the plans of parties and, last, of a dealer."""
    keys = [
        Ed25519PrivateKey.from_private_bytes(bytes([1 + r]) * 32)
        for r in range(num_parties + 1)
    ]
    peers = tuple(
        Peer("127.0.0.1", free_port(), key.public_key().public_bytes_raw())
        for key in keys
    )
    return [
        LinkPlan(
            rank=rank,
            peers=peers,
            seed=key.private_bytes_raw(),
            genesis=bytes(32),
            **settings,
        )
        for rank, key in enumerate(keys)
    ]


def split(values, num_parties):
    """Return shares modulo 2^64 of signed integers."""
    rng = np.random.default_rng(11)
    shares = rng.integers(0, 2**64, (num_parties, *values.shape), dtype=np.uint64)
    shares[-1] = values.astype(np.uint64) - shares[:-1].sum(axis=0, dtype=np.uint64)
    return shares


def compute_plain(values, threshold):
    """Return who is far from whom, from sketches in the clear, in Python's integers."""
    rows = [[int(value) for value in row] for row in values]
    return np.array(
        [
            [
                sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) > threshold
                for y in rows
            ]
            for x in rows
        ]
    )


def together(*calls):
    """Run calls at the same time; return what they return or raise."""

    def attempt(call):
        try:
            return call()
        except (LinkError, RobustnessError) as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(attempt, calls))


def run_all(plans, shares, threshold):
    *parties, dealer = plans
    *found, _ = together(
        *(
            lambda plan=plan, share=share: run_find_far(
                plan, share, threshold, context=CONTEXT
            )
            for plan, share in zip(parties, shares, strict=True)
        ),
        lambda: run_dealer(dealer),
    )
    return found


# What is found


def test_exactly_the_outliers_are_flagged_and_all_parties_open_the_same_bits():
    rng = np.random.default_rng(5)
    num_values, num_agents, outliers = 20_000, 10, {2, 6}
    common = rng.normal(0, 300, num_values)
    updates = np.rint(common + rng.normal(0, 200, (num_agents, num_values)))
    updates[2] *= -1  # as long as the others, and elsewhere
    updates[6] = rng.normal(0, 360, num_values).round()
    norm_bound = int(np.sqrt((updates**2).sum(axis=1).max())) + 1
    threshold = compute_threshold(norm_bound, numerator=1, denominator=1)
    sketch = Sketch.expand(bytes(range(32)), num_values=num_values)

    def compute_sketches(shares):
        return np.array([sketch.compute(share) for share in shares])

    updates = updates.astype(np.int64)
    shares = [compute_sketches(share) for share in split(updates, 3)]
    found = run_all(make_plans(3), shares, threshold)

    plain = compute_plain(
        compute_sketches(updates.astype(np.uint64)).astype(np.int64), threshold
    )
    for far in found:
        np.testing.assert_array_equal(far, plain)
    assert flag(found[0]) == outliers


def make_boundaries():
    """Return sketches whose squared distances lie at and around two thresholds."""
    values = np.zeros((8, NUM_BUCKETS), dtype=np.int64)
    values[1, 0] = 1_000  # squared distance from the first: the threshold itself
    values[2, :2] = 1_000, 1  # one more
    values[3, :2] = 999, 44  # 999,937
    values[4, 3] = -1_000
    values[5, 511] = 2**30
    values[6, 511] = -(2**30)  # from the one before, 2^62
    values[7, 511] = 1 - 2**30
    return values


@pytest.mark.parametrize(
    ("num_parties", "threshold"),
    [(2, THRESHOLD), (3, MAX_FAR_THRESHOLD - 1), (4, MAX_FAR_THRESHOLD), (5, 1)],
)
def test_bits_are_exact_for_however_many_parties(num_parties, threshold):
    values = make_boundaries()
    plain = compute_plain(values, threshold)
    assert plain.any() == (threshold < MAX_FAR_THRESHOLD)
    found = run_all(make_plans(num_parties), split(values, num_parties), threshold)
    assert len(found) == num_parties
    for far in found:
        np.testing.assert_array_equal(far, plain)


# Who is gone


class Dying(PartyLink):
    """A link whose process is killed by SIGKILL in its given step."""

    left = 0

    def die(self):
        Dying.left -= 1
        if Dying.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def exchange(self, array, peers):
        self.die()
        return super().exchange(array, peers)

    def receive(self, peer, *, max_size_bytes):
        self.die()
        return super().receive(peer, max_size_bytes=max_size_bytes)


def die(step, plan, share):
    """Be a party, or a dealer, until a step."""
    Dying.left = step
    with Dying(plan) as link:
        if share is None:
            serve_dealer(link)
        else:
            find_far(link, share, THRESHOLD, context=CONTEXT)


def run_dying(plan, share, step):
    """Run one in a process of its own; returns how that ended."""
    process = FORKS.Process(target=die, args=(step, plan, share), daemon=True)
    process.start()
    process.join(300)
    return process.exitcode


@pytest.mark.parametrize(
    ("victim", "step"),
    [(2, 1), (1, 9), (0, 19), (3, 2)],
    ids=["before", "amid the circuit", "before the bits are compared", "the dealer"],
)
def test_whoever_is_killed_is_missed_by_all_others(victim, step):
    plans = make_plans(3, timeout_s=30)
    shares = split(make_boundaries(), 3)

    def run(plan):
        if plan.rank == victim:
            return run_dying(plan, None if victim == 3 else shares[victim], step)
        if plan.rank == 3:
            return run_dealer(plan)
        return run_find_far(plan, shares[plan.rank], THRESHOLD, context=CONTEXT)

    results = together(*(lambda plan=plan: run(plan) for plan in plans))
    assert results[victim] == -signal.SIGKILL
    parties = [result for rank, result in enumerate(results[:3]) if rank != victim]
    for error in parties:
        assert isinstance(error, LinkError), error
        assert error.reason == LinkFailure.LOST
    # Whoever is first to notice names the victim; others may name one who gave up.
    assert victim in {error.peer for error in parties}


def test_a_silent_party_is_missed_within_the_timeout():
    plans = make_plans(2, timeout_s=2)
    shares = split(make_boundaries(), 2)
    hold = threading.Event()

    def stay_silent():
        with PartyLink(plans[1]):
            hold.wait(60)

    def run_dealing():
        with PartyLink(plans[2]):
            hold.wait(60)

    def run_first():
        begun = time.monotonic()
        with PartyLink(plans[0]) as link:
            try:
                return find_far(link, shares[0], THRESHOLD, context=CONTEXT)
            finally:
                assert time.monotonic() - begun < 30
                hold.set()

    error, *_ = together(run_first, stay_silent, run_dealing)
    assert (error.reason, error.peer) == (LinkFailure.TIMED_OUT, 1)


def test_our_own_process_may_be_killed_too():
    (plan, *_) = make_plans(2)

    others = {child.pid for child in multiprocessing.active_children()}

    def find():
        return {child.pid for child in multiprocessing.active_children()} - others

    def kill():
        while not (found := find()):
            time.sleep(0.01)
        os.kill(found.pop(), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RobustnessError) as caught:
        run_find_far(plan, split(make_boundaries(), 2)[0], THRESHOLD, context=CONTEXT)
    killer.join()
    assert caught.value.reason == RobustnessFailure.PROCESS_DIED
    assert "exit code -9" in str(caught.value)


# Who computes something else


def run_in_threads(
    monkeypatch, opened, *, contexts=(CONTEXT,) * 2, thresholds=(THRESHOLD,) * 2
):
    """Run two parties up to CrypTen, which opens what it is told to."""

    def compute_far_bits(link, sketches, threshold):
        return np.array(opened[link.rank])

    fault = SimpleNamespace(compute_far_bits=compute_far_bits)
    monkeypatch.setitem(sys.modules, CRYPTEN, fault)
    monkeypatch.setattr("streams.mpc.crypten_link", fault, raising=False)
    plans = make_plans(2)
    sketches = np.zeros((3, NUM_BUCKETS), dtype=np.uint64)

    def run(plan):
        with PartyLink(plan) as link:
            if plan.rank == 2:
                return None
            return find_far(
                link, sketches, thresholds[plan.rank], context=contexts[plan.rank]
            )

    *results, _ = together(*(lambda plan=plan: run(plan) for plan in plans))
    return results


def test_parties_that_agree_get_the_matrix_of_the_bits(monkeypatch):
    results = run_in_threads(monkeypatch, [[0, 1, 0]] * 2)
    for far in results:
        assert far.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    "different",
    [{"contexts": (CONTEXT, b"round 8")}, {"thresholds": (THRESHOLD, THRESHOLD + 1)}],
    ids=["context", "threshold"],
)
def test_a_party_that_computes_about_something_else_is_named(monkeypatch, different):
    results = run_in_threads(monkeypatch, [[0, 0, 0]] * 2, **different)
    for other, error in zip((1, 0), results, strict=True):
        assert error.reason == RobustnessFailure.OTHER_CONTEXT
        assert f"party {other}" in str(error)


def test_a_party_that_opened_other_bits_is_named(monkeypatch):
    results = run_in_threads(monkeypatch, [[0, 0, 0], [0, 0, 1]])
    for other, error in zip((1, 0), results, strict=True):
        assert error.reason == RobustnessFailure.OTHER_BITS
        assert f"party {other}" in str(error)


@pytest.mark.parametrize("opened", [[0, 1, 2], [0, -1, 0], [0, 1]])
def test_bytes_other_than_bits_are_refused(monkeypatch, opened):
    for error in run_in_threads(monkeypatch, [opened] * 2):
        assert error.reason == RobustnessFailure.NOT_BITS


# Arguments


@pytest.mark.parametrize(
    ("sketches", "threshold"),
    [
        (np.zeros((1, NUM_BUCKETS), dtype=np.uint64), 1),
        (np.zeros((MAX_COMPARED + 1, NUM_BUCKETS), dtype=np.uint64), 1),
        (np.zeros((2, NUM_BUCKETS - 1), dtype=np.uint64), 1),
        (np.zeros((2, NUM_BUCKETS), dtype=np.int64), 1),
        (np.zeros(NUM_BUCKETS, dtype=np.uint64), 1),
        (np.zeros((2, NUM_BUCKETS), dtype=np.uint64), 0),
        (np.zeros((2, NUM_BUCKETS), dtype=np.uint64), MAX_FAR_THRESHOLD + 1),
    ],
    ids=["one agent", "many agents", "buckets", "signed", "vector", "zero", "large"],
)
def test_arguments_out_of_range_are_refused(sketches, threshold):
    link = SimpleNamespace(rank=0, num_peers=3)
    with pytest.raises(ValueError, match=r"agents|shape|threshold"):
        find_far(link, sketches, threshold, context=CONTEXT)


@pytest.mark.parametrize(("rank", "num_peers"), [(0, 2), (2, 3)])
def test_a_link_without_a_dealer_is_refused_and_a_dealer_has_no_shares(rank, num_peers):
    link = SimpleNamespace(rank=rank, num_peers=num_peers)
    with pytest.raises(ValueError, match="dealer"):
        find_far(link, np.zeros((2, NUM_BUCKETS), np.uint64), 1, context=CONTEXT)


def test_an_error_in_the_process_is_the_callers():
    plan, *_, dealer = make_plans(2)
    with pytest.raises(LinkError) as caught:
        run_dealer(replace(dealer, connect_timeout_s=0.5))
    assert (caught.value.reason, caught.value.peer) == (LinkFailure.NOT_REACHED, 0)
    # It went through a pipe.
    assert str(caught.value).startswith("NOT_REACHED: peer 0: ")
    assert plan.rank == 0


# What is refused of CrypTen


@pytest.mark.parametrize(
    ("provider", "protocol", "reason", "why"),
    [
        ("TFP", "beaver", UnsafeSetting.PARTY_KNOWS_TRIPLES, "party 0 makes"),
        ("TFP", "replicated", UnsafeSetting.PARTY_KNOWS_TRIPLES, "party 0 makes"),
        ("TTP", "replicated", UnsafeSetting.SHARES_NOT_MASKED, "without a fresh mask"),
        ("HE", "beaver", UnsafeSetting.NOT_EXAMINED, "HE"),
        ("TTP", "other", UnsafeSetting.NOT_EXAMINED, "other"),
    ],
)
def test_configurations_that_leak_are_refused(provider, protocol, reason, why):
    with pytest.raises(UnsafeConfigurationError) as caught:
        check_configuration(provider, protocol)
    assert caught.value.reason == reason
    assert why in caught.value.detail
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) == f"{reason}: {caught.value.detail}"


def test_the_one_that_was_examined_is_not():
    check_configuration("TTP", "beaver")


def run_python(program):
    """Run a program in a process of its own, where CrypTen is loaded."""
    with ProcessPoolExecutor(1, FORKS) as pool:
        return pool.submit(execute, program).result()


def execute(program):
    """Run a program; returns what it printed."""
    with redirect_stdout(io.StringIO()) as output:
        exec(program, {})
    return output.getvalue()


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("provider", "TFP", UnsafeSetting.PARTY_KNOWS_TRIPLES),
        ("protocol", "replicated", UnsafeSetting.SHARES_NOT_MASKED),
    ],
)
def test_nothing_is_computed_or_sent_if_crypten_is_set_to_what_leaks(
    setting, value, reason
):
    program = f"""
import numpy as np
from streams.mpc import crypten_link
from streams.mpc import robustness
crypten_link.cfg.mpc.{setting} = "{value}"
try:
    crypten_link.compute_far_bits(None, np.zeros((2, 512), np.uint64), 1)  # no link
except robustness.UnsafeConfigurationError as error:
    print(error.reason)
"""
    assert run_python(program).strip() == reason


def test_the_module_that_the_party_imports_loads_no_torch():
    program = """
import sys, streams.mpc.robustness
print([name for name in ("torch", "crypten") if name in sys.modules])
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == "[]"


def test_masks_are_aes_and_never_torchs_generators():
    program = """
import torch
from streams.mpc import crypten_link
for name in ("randint", "rand", "manual_seed"):
    setattr(torch, name, None)
first, second = (crypten_link._Stream(bytes(range(32))) for _ in range(2))
drawn = crypten_link.ttp_provider.generate_random_ring_element((2, 3), generator=first)
assert drawn.dtype == torch.int64 and drawn.shape == (2, 3)
whole = second.draw((7,))
assert torch.equal(drawn.reshape(-1), whole[:6])
bit = crypten_link.binary.generate_kbit_random_tensor(
    torch.Size([1]), bitlength=1, generator=first
)
assert int(bit) == int(whole[6]) & 1
none = crypten_link.arithmetic.generate_random_ring_element((0,), generator=first)
assert none.shape == (0,)
print(whole.numpy().tobytes().hex())
"""
    cipher = Cipher(algorithms.AES256(bytes(range(32))), modes.CTR(bytes(16)))
    expected = cipher.encryptor().update(bytes(56))
    assert run_python(program).strip() == expected.hex()


def test_a_dealer_deals_only_what_this_takes():
    program = """
import numpy as np
from streams.mpc.crypten_link import MAX_DEALT_WORDS, _parse_request
from streams.mpc.robustness import RobustnessError

def is_dealt(*numbers, dtype=np.int64):
    try:
        return _parse_request(np.array(numbers, dtype=dtype))
    except RobustnessError as error:
        assert error.reason == "NOT_DEALT"
        return None

assert is_dealt(0, 2, 256, 512, 512, 256) == (
    "additive", (256, 512), (512, 256), "matmul"
)
assert is_dealt(1, 1, MAX_DEALT_WORDS, MAX_DEALT_WORDS)[0] == "binary"
assert is_dealt(2, 1, MAX_DEALT_WORDS) == ("B2A", (MAX_DEALT_WORDS,))
for refused in (
    (0, 2, 257, 512, 512, 257),
    (0, 2, 2, 511, 511, 2),
    (0, 2, 2, 512, 512, 3),
    (0, 0),
    (1, 1, MAX_DEALT_WORDS + 1, MAX_DEALT_WORDS + 1),
    (1, 2, 2**11, 2**12, 2**12, 2**11),
    (1, 1, 4, 5),
    (1, 2, 4, 1, 1, 4),
    (1, 1, -1, -1),
    (1, 2, 2**40, 2**40, 2**40, 2**40),
    (1, 3, 0, 2**62, 2**62, 0, 2**62, 2**62),
    (2, 1, MAX_DEALT_WORDS + 1),
    (2, 1, 4, 4),
    (3, 1, 4),
    (-1, 1, 4),
    (1,),
    (),
):
    assert is_dealt(*refused) is None, refused
assert is_dealt(2, 1, 4, dtype=np.uint64) is None
try:
    _parse_request(np.zeros((2, 2), np.int64))
except RobustnessError:
    print("done")
"""
    assert run_python(program).strip() == "done"


def test_a_party_that_asks_for_something_else_ends_the_dealing():
    plans = make_plans(2)

    def ask():
        with PartyLink(plans[0]) as link:
            link.send(2, np.array([9, 9], dtype=np.int64))
            return link.receive(2, max_size_bytes=2**10).nbytes, link.receive(
                2, max_size_bytes=2**10
            )

    def stay():
        with PartyLink(plans[1]) as link:
            return link.receive(2, max_size_bytes=2**10).nbytes, link.receive(
                2, max_size_bytes=2**10
            )

    first, second, dealer = together(ask, stay, lambda: run_dealer(plans[2]))
    assert dealer.reason == RobustnessFailure.NOT_DEALT
    assert "[9, 9]" in dealer.detail
    for error in (first, second):
        assert (error.reason, error.peer) == (LinkFailure.LOST, 2)


def test_a_link_that_is_lost_within_crypten_is_not_taken_for_lack_of_memory():
    # CrypTen's conversion to bits retries on RuntimeError.
    assert not issubclass(LinkError, RuntimeError)
    assert not issubclass(robustness.RobustnessError, RuntimeError)

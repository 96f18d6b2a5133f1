"""An agent in an MPC round: it says one thing, at once, killed or not."""

import hashlib
import itertools
import logging
import pathlib
import secrets
import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest

import producers.agent.agent
from adapters.kafka import Record, make_headers
from adapters.kafka_log import Genesis
from ledger.merkle import leaf_hash
from producers.agent.agent import Agent, AgentOptions
from producers.agent.directory import AgentDirectory, AgentDirectoryError
from producers.agent.kept_update import KeptUpdate, UpdateKeeper
from producers.agent.receipts import Said
from producers.agent.terms import Floors, Terms
from producers.modes.mpc import commit, encode_within_bound
from protocol.clipping import NormBoundTooSmallError, compute_squared_norm
from protocol.envelope import sign_event
from protocol.exchanged_state import Update
from protocol.modes.mpc import norm_prover
from protocol.modes.mpc.checker import (
    MpcShape,
    open_shares,
    parse_proof,
    parse_statement,
)
from protocol.modes.mpc.configuration import get_mpc
from protocol.modes.mpc.norm_proof import InvalidProofError
from protocol.modes.mpc.shares import split_update
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import BlobDict, frame, make_key, read_blocks, unframe
from tests.mpc_builder import make_sealing_key, start_mpc_log
from tests.mpc_rounds import make_mpc_round
from tests.proving import verify_norm_proof
from tests.simulation.federation import GENESIS, edit

ME = "ada"
LATER_MS = 2**50
OFFSET = 7
"""Where the records that it hears are."""


@pytest.fixture(scope="module")
def log():
    """A federation with a round that has just begun."""
    log = start_mpc_log()
    log.request_round()
    return log


@pytest.fixture(scope="module")
def started(log):
    return replace(log.started, deadline_ms=LATER_MS)


def record_of(fact, signer="DECIDER"):
    """Return the record of a fact, as Kafka has it."""
    headers = make_headers(fact, codec.encode(fact), make_key(signer), GENESIS, "")
    return Record(
        topic=topics.topic_of(fact),
        partition=0,
        offset=OFFSET,
        key=fact.federation_id.encode(),
        value=frame(fact),
        headers=tuple(headers),
    )


def leaf_of(fact):
    """Return the hash of the leaf that the record of a fact becomes."""
    record = record_of(fact)
    leaf = e.Leaf(
        event=codec.encode(fact),
        signature=record.header("moot-signature"),
        source_topic="moot.rounds",
        source_partition=0,
        source_offset=OFFSET,
    )
    return leaf_hash(codec.encode(leaf))


# An agent without a stack


class Registry:
    unframe = staticmethod(unframe)


class Publisher:
    def __init__(self, said):
        self.said = said

    def publish(self, event, key, genesis, *, traceparent=None):
        assert genesis == GENESIS
        self.said.append(event)


class Process(Agent):
    """One life of an agent: what it knows is gone when it is killed."""

    def __init__(self, directory, config, blobs, said, *, delta=None, is_member=True):
        self._settings = None
        self._options = AgentOptions(
            federation_id=config.federation_id,
            agent_id=ME,
            operator_key=bytes(32),
            directory=directory,
            allowed_prefixes=(),
            data_config={},
        )
        self._directory = AgentDirectory(directory)
        self._terms = Terms(directory, Floors(), Genesis(config, GENESIS), ME)
        self._terms.is_member = is_member
        self._terms.accept_first(None)
        self._answered_elsewhere = set()
        self._key = make_key(ME)
        self._registry = Registry()
        self._publisher = Publisher(said)
        self._store = blobs
        self._genesis = Genesis(config, GENESIS)
        self._updates = UpdateKeeper(directory)
        self._delta = delta

    def _train(self, started):
        """Training is never twice the same."""
        delta = np.random.default_rng().normal(size=started.num_parameters) / 1_000
        delta = delta if self._delta is None else self._delta
        return Update(delta), 12, 345_678

    def hear(self, fact, signer="DECIDER"):
        self.take(record_of(fact, signer))

    def take(self, record):
        """Act on a record, and let errors show."""
        self._open = None
        self._hear(record)
        if self._open is not None:
            self._act_on(*self._open)


def encode(delta, log):
    return encode_within_bound(Update(delta), log.config).values


class World:
    """What outlives an agent's process: its disk, the store, what was said."""

    def __init__(self, directory, config):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.config = config
        self.blobs = BlobDict()
        self.said = []
        self.last = None

    def start(self, **options):
        if self.last is not None:
            self.last._directory.close()  # with the process before it
        self.last = Process(
            self.directory, self.config, self.blobs, self.said, **options
        )
        return self.last

    def copy_to(self, directory):
        """Return a world with a copy of the directory, and the same store and log."""
        shutil.copytree(self.directory, directory)
        copy = World(directory, self.config)
        copy.blobs, copy.said = self.blobs, self.said
        return copy

    def restore(self, saved):
        """Put back what was saved, as from a backup."""
        shutil.rmtree(self.directory)
        shutil.copytree(saved, self.directory)

    def of(self, kind):
        """Return what was said of a kind, each encoding once."""
        encoded = {
            codec.encode(event) for event in self.said if isinstance(event, kind)
        }
        return [codec.decode(data) for data in encoded]

    def proofs(self):
        """Return the norm proofs in the store, said or not."""
        return [
            blob
            for blob in self.blobs.values()
            if blob[: codec.HEADER_SIZE]
            == codec.MARKER + codec.compute_fingerprint(codec.schema_text("NormProof"))
        ]


def test_an_agent_that_was_not_admitted_does_not_answer(world, started, monkeypatch):
    """Its name has a ticket as well, and a round of everybody draws every ticket."""
    agent = world.start(is_member=False)
    reads = []
    monkeypatch.setattr(agent, "_read_on", lambda: reads.append(agent._terms.is_member))
    agent.hear(started)
    assert world.said == []
    assert reads == [False]
    # What the log has by the next round.
    monkeypatch.setattr(
        agent, "_read_on", lambda: setattr(agent._terms, "is_member", True)
    )
    agent.hear(started)
    assert len(world.said) == 1


@pytest.fixture
def world(tmp_path, log):
    return World(tmp_path / "agent", log.config)


def check(world, started, update):
    """Check that an update proves what it says, and return what was shared."""
    secret = make_mpc_round(world.config, started, started_leaf_hash=leaf_of(started))
    commitments = world.blobs[update.commitments.sha256]
    statement = parse_statement(secret, update, commitments)
    verify_norm_proof(statement, parse_proof(world.blobs[update.proof.sha256]))
    return values_of(world, update)


def values_of(world, update):
    """Return what an agent shared, as all parties together could."""
    shares = [
        open_shares(
            GENESIS,
            update,
            share.party,
            world.blobs[share.sealed.sha256],
            make_sealing_key(share.party),
            MpcShape.of(world.config),
        )
        for share in update.shares
    ]
    return sum(share.values for share in shares).view(np.int64)


# Whom it believes


def test_another_federations_words_count_nothing_under_this_ones_name(world, started):
    """One decider signs for all its federations: a record can be written anew."""
    agent = world.start()
    elsewhere = record_of(replace(started, federation_id="founded-by-a-stranger"))
    agent.take(replace(elsewhere, key=started.federation_id.encode()))
    assert not world.said
    agent.hear(started)
    assert world.said


# A life without accidents


def test_an_agent_says_all_at_once(world, started):
    world.start().hear(started)
    (update,) = world.said
    assert (update.agent_id, update.num_examples, update.loss_micros) == (
        ME,
        12,
        345_678,
    )
    values = check(world, started, update)
    assert 0 < compute_squared_norm(values) <= get_mpc(world.config).norm_bound ** 2
    refs = [update.commitments, update.proof, *(s.sealed for s in update.shares)]
    assert {ref.sha256 for ref in refs} == set(world.blobs)


def test_a_proof_is_about_the_leaf_that_its_agent_has_heard(world, started):
    world.start().hear(started)
    (update,) = world.said
    for other in (
        replace(started, deadline_ms=started.deadline_ms - 1),
        replace(started, cause=b"\1" * 32),
    ):
        with pytest.raises(InvalidProofError):
            check(world, other, update)


def test_an_update_that_is_too_long_is_clipped(world, started):
    world.start(delta=np.full(started.num_parameters, 10.0)).hear(started)
    (update,) = world.said
    values = check(world, started, update)
    assert compute_squared_norm(values) <= get_mpc(world.config).norm_bound ** 2
    assert (values > 0).all()


def test_a_disk_holds_nothing_random_of_an_update(world, started, monkeypatch):
    states = []

    def remember(state, *others):
        states.append(state)
        return split_update(state, *others)

    monkeypatch.setattr("producers.modes.mpc.split_update", remember)
    world.start().hear(started)
    (state,) = states
    names = {path.suffix for path in world.directory.iterdir()}
    assert names <= {"", ".sent", ".update"}
    kept = b"".join(path.read_bytes() for path in world.directory.iterdir())
    hidden = [state.nonce_key]
    hidden += [mask.to_bytes(15, "little", signed=True) for mask in state.masks]
    hidden += [blinding.to_bytes(32, "little") for blinding in state.blindings]
    assert not any(secret in kept for secret in hidden)


def test_what_it_says_for_a_base_model_is_on_disk_until_another_one_comes(
    world, started
):
    agent = world.start()
    agent.hear(started)
    (update,) = world.said
    values = check(world, started, update).astype("<i4").tobytes()[:16]

    def is_on_disk():
        files = (f.read_bytes() for f in world.directory.iterdir() if f.is_file())
        return any(values in data for data in files)

    agent.hear(replace(started, round=2, last_ticket=bytes(32)))
    assert is_on_disk()
    # What a crash left is as secret.
    (world.directory / f".base-{'0' * 64}.update.0123abcd.draft").write_bytes(values)
    other = replace(started.base_model, sha256=bytes(32))
    agent.hear(replace(started, round=3, last_ticket=bytes(32), base_model=other))
    assert not is_on_disk()


@pytest.mark.parametrize("is_killed", [False, True])
def test_for_one_base_model_it_says_one_update_and_nothing_else_twice(
    world, started, is_killed
):
    """However often the round is asked for again, and whatever training would give."""
    agent = world.start()
    rounds = [replace(started, round=n, cause=bytes([n]) * 32) for n in (1, 2, 3)]
    for fact in rounds:
        agent.hear(fact)
        if is_killed:
            agent = world.start()
    updates = sorted(world.of(e.UpdateCommitted), key=lambda u: u.round)
    assert [update.round for update in updates] == [1, 2, 3]
    first, *others = (
        check(world, fact, update) for fact, update in zip(rounds, updates, strict=True)
    )
    assert all(np.array_equal(first, other) for other in others)
    assert {(u.num_examples, u.loss_micros) for u in updates} == {(12, 345_678)}
    # Nothing random is said twice: no commitment, no share, no part of a proof.
    blobs = [u.commitments.sha256 for u in updates]
    points = [
        world.blobs[blob][begin : begin + 48]
        for blob in blobs
        for begin in range(0, len(world.blobs[blob]), 48)
    ]
    shares = [(s.sealed.sha256, s.commitment) for u in updates for s in u.shares]
    assert len(set(points)) == len(points)
    assert len(set(shares)) == len(shares) == 9
    proofs = [codec.decode(blob) for blob in world.proofs()]
    assert len(proofs) == 3
    for name in ("projections", "z_mask", "z", "z_blinding"):
        assert len({getattr(proof, name) for proof in proofs}) == len(proofs)
    # Another base model is trained on anew.
    other = replace(started.base_model, sha256=b"\1" * 32)
    fact = replace(rounds[2], round=4, base_model=other)
    agent.hear(fact)
    (last,) = (u for u in world.of(e.UpdateCommitted) if u.round == 4)
    assert not np.array_equal(check(world, fact, last), first)


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_what_cannot_be_said_again_is_trained_anew(world, started, how):
    agent = world.start()
    agent.hear(started)
    (path,) = world.directory.glob("*.update")
    data = path.read_bytes()
    if how == "flipped":
        path.write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    else:
        path.write_bytes(data[:-4])
    agent.hear(replace(started, round=2, cause=b"2" * 32))
    first, second = sorted(world.of(e.UpdateCommitted), key=lambda u: u.round)
    assert not np.array_equal(values_of(world, first), values_of(world, second))


def test_how_many_steps_an_update_was_divided_by_is_said_again(
    world, started, monkeypatch
):
    update = Update(np.full(started.num_parameters, 0.001), num_steps=7)
    monkeypatch.setattr(Process, "_train", lambda *_: (update, 12, None))
    world.start().hear(started)
    world.start().hear(replace(started, round=2, cause=b"2" * 32))
    assert [answer.num_steps for answer in world.said] == [7, 7]
    check(world, started, world.said[0])


@pytest.mark.parametrize(("version", "num_numbers"), [(1, 3), (2, 5)])
def test_what_an_older_version_kept_is_said_again(tmp_path, log, version, num_numbers):
    keeper, started = UpdateKeeper(tmp_path), log.started
    values = np.arange(started.num_parameters)
    keeper.keep(started, KeptUpdate(values, 12, 5), bound=9)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()[:-32]
    newest = b"folkmoot/agent-update/v3\n"
    assert data.startswith(newest)
    numbers_end = len(data) - 4 * len(values)
    numbers_begin = numbers_end - 6 * 8
    older = (
        f"folkmoot/agent-update/v{version}\n".encode()
        + data[len(newest) : numbers_begin + 8 * num_numbers]
        + data[numbers_end:]
    )
    path.write_bytes(older + hashlib.sha256(older).digest())
    found = keeper.find(started, bound=9)
    assert np.array_equal(found.values, values)
    assert (found.num_examples, found.loss_micros, found.num_steps) == (12, 5, None)


@pytest.mark.parametrize("loss_micros", [None, 0, -3, 345_678])
def test_an_update_is_said_again_only_as_it_is_encoded(tmp_path, log, loss_micros):
    keeper, started = UpdateKeeper(tmp_path), log.started
    values = np.arange(-150, started.num_parameters - 150)
    bound = get_mpc(log.config).norm_bound
    keeper.keep(started, KeptUpdate(values, 12, loss_micros), bound=bound)
    found = keeper.find(started, bound=bound)
    assert np.array_equal(found.values, values)
    assert (found.num_examples, found.loss_micros) == (12, loss_micros)
    other = replace(started.base_model, sha256=bytes(32))
    for another, within in (
        (started, bound - 1),
        (replace(started, fractional_bits=started.fractional_bits - 1), bound),
        (replace(started, num_parameters=started.num_parameters + 1), bound),
        (replace(started, base_model=other), bound),
    ):
        assert keeper.find(another, bound=within) is None


PRIVACY = e.RoundPrivacy(sigma=1, norm_bound=1, weight=12, inverse_delta=10, order=2)


@pytest.mark.parametrize("is_kept", [False, True])
def test_an_update_that_clipping_shrinks_a_lot_says_so(world, started, caplog, is_kept):
    delta = np.full(started.num_parameters, 1_000.0)
    delta[1:] *= 1e-9
    world.start(delta=delta).hear(started)
    if is_kept:  # said again, by another process
        world.start().hear(replace(started, round=2, cause=b"2" * 32))
    for update in world.of(e.UpdateCommitted):
        loss = update.encoding_loss
        assert loss.shrunk_times > 100
        assert loss.zeroed_percent > 90
    assert f"made the update {loss.shrunk_times} times shorter" in caplog.text
    assert f"{loss.zeroed_percent} % of the trained values" in caplog.text
    assert "larger clip norm" in caplog.text


def test_with_agent_level_privacy_only_the_agent_knows(world, started, caplog):
    """How long an update was is what its noise hides."""
    delta = np.full(started.num_parameters, 1_000.0)
    world.start(delta=delta).hear(replace(started, privacy=PRIVACY))
    (update,) = world.of(e.UpdateCommitted)
    assert update.encoding_loss is None
    assert "times shorter" in caplog.text


def test_an_ordinary_update_says_nothing_of_the_kind(world, started, caplog):
    delta = np.full(started.num_parameters, 0.001)
    world.start(delta=delta).hear(started)
    (update,) = world.of(e.UpdateCommitted)
    assert update.encoding_loss is None
    assert "shorter" not in caplog.text


def test_statistics_leave_the_norm_bound_to_what_is_learned(log):
    """With batch norm of inputs whose variance is 570,000, learned weights were sent as
    zero, and counted.
    """
    learned = np.random.default_rng(1).normal(0, 0.01, 60)
    base, after = np.repeat([0.0, 1.0], 20), np.repeat([-300.0, 570_000.0], 20)
    encoded = encode_within_bound(Update(learned, base, after), log.config)
    bound = get_mpc(log.config).norm_bound
    assert compute_squared_norm(encoded.values) <= bound**2
    sent = encoded.values[:60] / 2**log.config.fractional_bits
    assert np.abs(sent - learned).max() <= 2.0**-log.config.fractional_bits
    assert encoded.loss is None
    assert encoded.num_held_back == 40
    # The last round of a diverging training isn't worth more than the bound, either.
    long = encode_within_bound(Update(learned * 1e6, base, after), log.config)
    assert compute_squared_norm(long.values) <= bound**2
    assert compute_squared_norm(long.values[:60]) > (0.85 * bound) ** 2


def test_an_agent_that_is_not_drawn_says_nothing(world, started):
    agent = world.start()
    agent.hear(replace(started, last_ticket=bytes(32)))
    assert world.said == []
    names = {path.name for path in world.directory.iterdir()}
    assert names == {"lock", "tasks"}


def test_nobody_but_the_decider_makes_it_speak(world, started, caplog):
    agent = world.start()
    agent.hear(started, signer="AGGREGATOR")
    assert world.said == []
    assert "ignoring offset" in caplog.text


def test_a_bound_that_is_too_small_is_declined(tmp_path, log, started):
    world = World(tmp_path, edit(log.config, norm_bound=3))
    world.start().hear(started)
    (declined,) = world.said
    assert isinstance(declined, e.UpdateDeclined)
    assert declined.reason == Reason.TRAINING_FAILED
    assert declined.detail == NormBoundTooSmallError.__name__
    assert not world.blobs


def test_an_update_that_is_not_finite_is_declined(world, started):
    delta = np.zeros(started.num_parameters)
    delta[7] = np.nan
    world.start(delta=delta).hear(started)
    (declined,) = world.said
    assert declined.reason == Reason.NOT_FINITE
    assert not world.blobs


# Accidents


class Killed(BaseException):
    """No handler of ours may see it."""


class Fate:
    """Kills the process at one of the steps that leave a trace, before or after it."""

    def __init__(self, monkeypatch, step, *, is_done):
        self.left = step
        self.is_done = is_done
        self.has_struck = False
        rename, store, publish = pathlib.Path.replace, BlobDict.store, Publisher.publish
        monkeypatch.setattr(pathlib.Path, "replace", self.wrap(rename))
        monkeypatch.setattr(BlobDict, "store", self.wrap(store))
        monkeypatch.setattr(Publisher, "publish", self.wrap(publish))

    def wrap(self, act):
        def acting(*args, **options):
            strikes = self.left == 0
            self.left -= 1
            if strikes and not self.is_done:
                self.strike()
            result = act(*args, **options)
            if strikes:
                self.strike()
            return result

        return acting

    def strike(self):
        self.has_struck = True
        raise Killed


def live(world, facts, agent=None):
    """Let an agent act on facts; one that is killed reads the last one again."""
    agent = agent or world.start()
    waiting = list(facts)
    while waiting:
        try:
            agent.hear(waiting[0])
        except Killed:
            agent = world.start()
        else:
            waiting.pop(0)
        for path in world.directory.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return agent


def count_steps(tmp_path, log, facts):
    """Return at how many steps an agent can be killed while it acts on facts."""
    directory = tmp_path / "counted"
    directory.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        fate = Fate(patch, 10**6, is_done=False)
        live(World(directory, log.config), facts)
    return 10**6 - fate.left


def worlds(tmp_path, log, facts, kinds=(False, True)):
    """Yield a world and a fate for each step, in both kinds."""
    for step, is_done in itertools.product(
        range(count_steps(tmp_path, log, facts)), kinds
    ):
        directory = tmp_path / f"{step}-{is_done}"
        directory.mkdir(parents=True)
        with pytest.MonkeyPatch.context() as patch:
            fate = Fate(patch, step, is_done=is_done)
            yield World(directory, log.config), fate
        assert fate.has_struck


def find_commitments(world):
    """Return the commitments in the store, said or not, by their proofs' masks."""
    size = MpcShape.of(world.config).commitments_size
    return [blob for blob in world.blobs.values() if len(blob) == size]


def test_an_agent_killed_at_any_step_says_one_thing_and_proves_it(
    tmp_path, log, started
):
    # Update, commitments, three shares, proof, draft, said, sent.
    assert count_steps(tmp_path, log, [started]) == 9
    has_two = False
    for number, (world, _) in enumerate(worlds(tmp_path / "x", log, [started])):
        live(world, [started, started])
        (update,) = world.of(e.UpdateCommitted)
        check(world, started, update)
        # No two proofs have the same masks, in the store either: whoever starts afresh
        # commits anew, to other masks.
        masks = [blob[-48:] for blob in find_commitments(world)]
        assert len(masks) == len(set(masks)), number
        assert len(world.proofs()) <= len(masks)
        has_two |= len(masks) == 2
    assert has_two


def test_no_two_attempts_have_a_byte_in_common(log, started):
    values = encode(np.zeros(log.num_parameters), log)
    made = []
    for _ in range(2):
        blobs = BlobDict()
        update = commit(
            values,
            started,
            log.config,
            GENESIS,
            blobs,
            started_leaf_hash=leaf_of(started),
            agent_id=ME,
            num_examples=1,
            loss_micros=0,
        )
        made.append((update, blobs))
    (one, blobs), (other, others) = made
    assert not set(blobs) & set(others)
    pairs = zip(one.shares, other.shares, strict=True)
    assert all(a.commitment != b.commitment for a, b in pairs)
    points = [
        {blob[i : i + 48] for i in range(0, len(blob), 48)}
        for blob in (
            blobs[one.commitments.sha256],
            others[other.commitments.sha256],
        )
    ]
    assert not points[0] & points[1]


# Copies


def test_a_copy_says_another_thing_that_shows_no_more(tmp_path, world, started):
    """Of two messages one counts; they have no mask in common."""
    copy = world.copy_to(tmp_path / "copy")
    world.start().hear(started)
    copy.start().hear(started)
    one, other = world.of(e.UpdateCommitted)
    for update in (one, other):
        check(world, started, update)
    masks = [blob[-48:] for blob in find_commitments(world)]
    assert len(set(masks)) == len(masks) == 2


def test_a_copy_of_what_was_said_says_it_again(tmp_path, world, started):
    agent = world.start()
    agent.hear(started)
    (sent,) = world.directory.glob("round-*.sent")
    sent.rename(sent.with_suffix(".avro"))  # as if it had been killed before
    copy = world.copy_to(tmp_path / "copy")
    copy.start().hear(started)
    assert len(world.said) == 2
    assert len(world.of(e.UpdateCommitted)) == 1


def test_a_directory_is_for_one_process_at_a_time(world):
    agent = world.start()
    with pytest.raises(AgentDirectoryError, match=r"process .* uses .*: stop it first"):
        AgentDirectory(world.directory)
    agent._directory.close()
    agent._directory.close()
    AgentDirectory(world.directory).close()


# What the log has under the agent's key


def make_leaves(log, *, signer=ME):
    """Return the opened leaves of a log, as if one had signed all answers."""
    for read in read_blocks(log):
        for leaf in read.leaves:
            if not isinstance(leaf.sequenced.event, Said):
                yield leaf
                continue
            signature = sign_event(
                make_key(signer), leaf.sequenced.genesis, leaf.leaf.event
            )
            yield replace(leaf, leaf=replace(leaf.leaf, signature=signature))


@pytest.fixture(scope="module")
def answered():
    """A log on which everybody has committed in the first round."""
    log = start_mpc_log()
    for agent in log.request_round():
        log.commit(agent)
    log.settle()
    return log


def recall(agent, leaves):
    for leaf in leaves:
        agent._notice(leaf)


def test_an_agent_says_nothing_more_in_a_round_that_another_copy_answered(
    world, answered, started, caplog
):
    agent = world.start()
    recall(agent, make_leaves(answered))
    assert caplog.text.count("ANSWERED_ELSEWHERE") == 1
    assert "last in round 1" in caplog.text
    agent.hear(started)
    assert world.said == []
    following = replace(started, round=2, cause=b"\2" * 32)
    agent.hear(following)
    assert [event.round for event in world.said] == [2]


@pytest.mark.parametrize("suffix", ["avro", "sent"])
def test_what_is_in_the_journal_is_the_agents_own(
    world, answered, started, caplog, suffix
):
    agent = world.start()
    number = 0
    for leaf in make_leaves(answered):
        event = leaf.sequenced.event
        if isinstance(event, Said) and event.agent_id == ME:
            name = f"answer-{number}.{suffix}"
            (world.directory / name).write_bytes(leaf.leaf.event)
            number += 1
        agent._notice(leaf)
    assert number == 1
    assert "ANSWERED_ELSEWHERE" not in caplog.text
    agent.hear(started)
    assert len(world.said) == 1


def test_nobody_puts_words_into_an_agents_mouth(world, answered, started, caplog):
    """Who writes the log can make up leaves, but no signature."""
    agent = world.start()
    recall(agent, make_leaves(answered, signer="SEQUENCER"))
    others = (
        leaf
        for leaf in make_leaves(answered)
        if getattr(leaf.sequenced.event, "agent_id", ME) != ME
    )
    recall(agent, others)
    assert "ANSWERED_ELSEWHERE" not in caplog.text
    agent.hear(started)
    assert len(world.said) == 1


def test_an_agent_recalls_the_log_before_it_speaks(
    tmp_path, world, answered, started, monkeypatch, caplog
):
    """The copy of a real directory, with the log as it is by now."""
    reads = list(read_blocks(answered))
    monkeypatch.setattr(producers.agent.agent, "read_log", lambda *_, **__: iter(reads))
    world.start()._enrol()
    assert caplog.text.count("ANSWERED_ELSEWHERE") == 1
    world.last.hear(started)
    assert world.said == []  # it did not ask to join either: the log has that


def test_what_another_process_says_meanwhile_is_noticed_too(world, started, caplog):
    agent = world.start()
    log = start_mpc_log()
    log.request_round()
    recall(agent, make_leaves(log))
    log.commit(ME)
    log.settle()
    recall(agent, make_leaves(log))
    assert "ANSWERED_ELSEWHERE" in caplog.text
    agent.hear(started)
    assert world.said == []


# The parts


@pytest.mark.parametrize("what", ["update", "round"])
def test_bytes_that_are_drawn_twice_give_no_mask_twice(log, started, monkeypatch, what):
    """A machine that is put back with its memory may draw what it drew before."""
    monkeypatch.setattr(secrets, "token_bytes", lambda n: b"\7" * n)
    states = []

    def remember(state, *others):
        states.append(state)
        return split_update(state, *others)

    monkeypatch.setattr("producers.modes.mpc.split_update", remember)
    made = []
    for number in range(2):
        delta = np.full(log.num_parameters, 0.001 * (what == "update") * number)
        heard = replace(started, round=1 + number) if what == "round" else started
        blobs = BlobDict()
        update = commit(
            encode(delta, log),
            heard,
            log.config,
            GENESIS,
            blobs,
            started_leaf_hash=leaf_of(heard),
            agent_id=ME,
            num_examples=1,
            loss_micros=0,
        )
        made.append(
            [
                open_shares(
                    GENESIS,
                    update,
                    share.party,
                    blobs[share.sealed.sha256],
                    make_sealing_key(share.party),
                    MpcShape.of(log.config),
                )
                for share in update.shares
            ]
        )
    one, other = states
    assert np.array_equal(one.values, other.values) == (what == "round")
    assert not set(one.masks) & set(other.masks)
    assert not set(one.blindings) & set(other.blindings)
    assert one.nonce_key != other.nonce_key
    for share, other_share in zip(*made, strict=True):
        assert not np.any(share.values == other_share.values)


def test_nothing_secret_is_shown(world, started, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    compute_coefficients = norm_prover._compute_coefficients
    polynomials, states = [], []

    def remember(*arguments):
        polynomials.append(compute_coefficients(*arguments))
        return polynomials[-1]

    def remember_state(state, *others):
        states.append(state)
        return split_update(state, *others)

    monkeypatch.setattr(norm_prover, "_compute_coefficients", remember)
    monkeypatch.setattr("producers.modes.mpc.split_update", remember_state)
    agent = world.start()
    live(world, [started], agent)
    [polynomial], [state] = polynomials, states
    # Short ones could be anything else's digits.
    numbers = [abs(n) for n in polynomial.values() if abs(n) > 10**9]
    assert len(numbers) > 3
    shown = "".join(
        (
            *(repr(state), repr(agent), caplog.text),
            *(repr(polynomial), str(polynomial), f"{polynomial}"),
        )
    )
    assert not any(str(number) in shown for number in numbers)
    assert str(state.values[:3])[1:-1] not in shown
    for number in (*state.masks[:3], *state.blindings[:3], *state.squares):
        assert number < 100 or str(number) not in shown
    assert state.nonce_key.hex() not in shown
    assert repr(state.nonce_key) not in shown

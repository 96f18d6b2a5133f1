"""An agent in a secret round: it says one thing and proves it once, killed or not."""

import itertools
import logging
import pathlib
import stat
from dataclasses import replace

import numpy as np
import pytest

from adapters.kafka import Record, make_headers
from producers.agent import Agent, AgentOptions
from producers.secret_update import (
    Secret,
    SecretError,
    SecretKeeper,
    prove,
    submit_commitment,
    write_private,
)
from protocol import norm_prover
from protocol.clipping import NormBoundTooSmallError, compute_squared_norm
from protocol.mpc import MpcShape, open_shares, parse_proof, parse_statement
from protocol.norm_proof import Projection, verify_norm_proof
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import BlobDict, frame, make_key, unframe
from tests.secret_builder import make_sealing_key, start_secret_log

ME = "ada"
LATER_MS = 2**50
SEED = b"\5" * 32
OTHER_SEED = b"\6" * 32


@pytest.fixture(scope="module")
def log():
    """A federation with a round that has just begun."""
    log = start_secret_log()
    log.request_round()
    return log


@pytest.fixture(scope="module")
def started(log):
    return replace(log.started, deadline_ms=LATER_MS)


def closed(started, seed=SEED):
    return e.CommitmentsClosed(
        federation_id=started.federation_id,
        round=started.round,
        cause=bytes(32),
        cause_leaf_index=9,
        output_index=0,
        agent_ids=started.cohort,
        projection_seed=seed,
        proof_deadline_ms=LATER_MS,
    )


def sealed(started):
    return e.RoundSealed(
        federation_id=started.federation_id,
        round=started.round,
        cause=bytes(32),
        cause_leaf_index=10,
        output_index=0,
        contributions=(),
        num_examples=0,
        base_model=started.base_model,
        fractional_bits=started.fractional_bits,
        num_parameters=started.num_parameters,
    )


def record_of(fact, signer="DECIDER"):
    headers = make_headers(fact, codec.encode(fact), make_key(signer), "")
    return Record(
        topic=topics.topic_of(fact),
        partition=0,
        offset=0,
        key=fact.federation_id.encode(),
        value=frame(fact),
        headers=tuple(headers),
    )


# An agent without a stack


class Registry:
    unframe = staticmethod(unframe)


class Publisher:
    def __init__(self, said):
        self.said = said

    def publish(self, event, key, *, traceparent=None):
        self.said.append(event)


class Process(Agent):
    """One life of an agent: what it knows is gone when it is killed."""

    def __init__(self, directory, config, blobs, said, *, delta=None):
        self._settings = None
        self._options = AgentOptions(
            federation_id=config.federation_id,
            agent_id=ME,
            operator_key=bytes(32),
            directory=directory,
            allowed_prefixes=(),
            data_config={},
        )
        self._key = make_key(ME)
        self._registry = Registry()
        self._publisher = Publisher(said)
        self._store = blobs
        self._config = config
        self._keeper = SecretKeeper(directory)
        self._delta = delta

    def _train(self, started):
        """Training is never twice the same."""
        delta = np.random.default_rng().normal(size=started.num_parameters) / 1_000
        return (delta if self._delta is None else self._delta), 12, 345_678

    def hear(self, fact, signer="DECIDER"):
        self._act_on(record_of(fact, signer))


class World:
    """What outlives an agent's process: its disk, the store, what was said."""

    def __init__(self, directory, config):
        self.directory = directory
        self.config = config
        self.blobs = BlobDict()
        self.said = []

    def start(self, **options):
        return Process(self.directory, self.config, self.blobs, self.said, **options)

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

    def secrets(self):
        return sorted(p for p in self.directory.iterdir() if ".secret" in p.name)


@pytest.fixture
def world(tmp_path, log):
    return World(tmp_path, log.config)


def check_proof(world, seed=SEED):
    """Check that what was said proves what was said."""
    (update,), (proof,) = world.of(e.UpdateCommitted), world.of(e.NormProofSubmitted)
    statement = parse_statement(
        world.config, update, world.blobs[update.commitments.sha256]
    )
    projection = Projection.expand(
        seed, num_rows=statement.num_rows, row_length=statement.row_length
    )
    blob = world.blobs[proof.proof.sha256]
    verify_norm_proof(statement, parse_proof(blob), projection)


# A life without accidents


def test_an_agent_commits_shares_and_proves(world, started):
    agent = world.start()
    agent.hear(started)
    (update,) = world.said
    assert (update.agent_id, update.num_examples, update.loss_micros) == (
        ME,
        12,
        345_678,
    )
    agent.hear(closed(started))
    check_proof(world)
    shape = MpcShape.of(world.config)
    shares = [
        open_shares(
            update,
            share.party,
            world.blobs[share.sealed.sha256],
            make_sealing_key(share.party),
            shape,
        )
        for share in update.shares
    ]
    values = sum(share.values for share in shares).view(np.int64)
    secret = Secret.from_bytes(world.secrets()[0].read_bytes())
    assert np.array_equal(values, secret.values)
    assert 0 < compute_squared_norm(values) <= world.config.norm_bound**2


def test_an_update_that_is_too_long_is_clipped(world, started):
    world.start(delta=np.full(started.num_parameters, 10.0)).hear(started)
    secret = Secret.from_bytes(world.secrets()[0].read_bytes())
    assert compute_squared_norm(secret.values) <= world.config.norm_bound**2
    assert (secret.values > 0).all()


@pytest.mark.parametrize("end", ["sealed", "abandoned", "another"])
def test_secrets_are_their_owners_and_end_with_the_round(world, started, end):
    agent = world.start()
    agent.hear(started)
    (path,) = world.secrets()
    secret = Secret.from_bytes(path.read_bytes())
    for file in world.directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    agent.hear(closed(started))
    # What a crash left is a secret too.
    (world.directory / f".{path.name}.draft").write_bytes(path.read_bytes())
    fact = {
        "sealed": sealed(started),
        "abandoned": e.RoundAbandoned(
            federation_id=started.federation_id,
            round=1,
            cause=bytes(32),
            cause_leaf_index=9,
            output_index=0,
            reason=Reason.OPERATOR_ABANDONED,
            detail="",
        ),
        "another": replace(started, round=2, cohort=("bea",)),
    }[end]
    agent.hear(fact)
    assert world.secrets() == []
    kept = b"".join(file.read_bytes() for file in world.directory.iterdir())
    for hidden in (secret.seed, secret.values.astype("<i4").tobytes()[:16]):
        assert hidden not in kept
    # And they are gone for good: in memory too.
    said = list(world.said)
    agent.hear(closed(started, OTHER_SEED))
    assert world.said == said
    assert len(world.proofs()) == 1


def test_secrets_of_other_rounds_do_not_outlive_the_start_of_one(world, started):
    world.start().hear(started)
    again = replace(started, cause=b"\1" * 32)  # a federation founded anew
    world.start().hear(again)
    (path,) = world.secrets()
    assert path.name.startswith("round-1-" + "01" * 8)


def test_who_is_not_drawn_says_nothing(world, started):
    agent = world.start()
    agent.hear(replace(started, cohort=("bea", "cleo")))
    agent.hear(replace(closed(started), agent_ids=("bea", "cleo")))
    assert world.said == []
    assert list(world.directory.iterdir()) == []


def test_who_is_late_says_nothing(world, started):
    agent = world.start()
    agent.hear(replace(started, deadline_ms=1))
    assert world.said == []
    agent.hear(started)
    agent.hear(replace(closed(started), proof_deadline_ms=1))
    assert world.of(e.NormProofSubmitted) == []
    assert world.proofs() == []


def test_nobody_but_the_decider_makes_it_prove(world, started, caplog):
    agent = world.start()
    agent.hear(started)
    agent.hear(closed(started), signer="AGGREGATOR")
    assert world.of(e.NormProofSubmitted) == []
    assert "ignoring offset" in caplog.text


def test_who_remembers_no_commitment_does_not_prove(world, started, caplog):
    agent = world.start()
    agent.hear(closed(started))
    assert world.said == []
    assert "remembers no commitment" in caplog.text


def test_a_bound_that_is_too_small_is_declined(tmp_path, log, started):
    world = World(tmp_path, replace(log.config, norm_bound=3))
    world.start().hear(started)
    (declined,) = world.said
    assert isinstance(declined, e.UpdateDeclined)
    assert declined.reason == Reason.TRAINING_FAILED
    assert declined.detail == NormBoundTooSmallError.__name__
    assert world.secrets() == []
    assert not world.blobs


def test_an_update_that_is_not_finite_is_declined(world, started):
    delta = np.zeros(started.num_parameters)
    delta[7] = np.nan
    world.start(delta=delta).hear(started)
    (declined,) = world.said
    assert declined.reason == Reason.NOT_FINITE
    assert world.secrets() == []


# Accidents


class Killed(BaseException):
    """No handler of ours may see it."""


class Fate:
    """Kills the process at one of the steps that leave a trace, before or after it."""

    def __init__(self, monkeypatch, step, *, is_done):
        self.left = step
        self.is_done = is_done
        self.has_struck = False
        rename, store, publish = pathlib.Path.rename, BlobDict.store, Publisher.publish
        monkeypatch.setattr(pathlib.Path, "rename", self.wrap(rename))
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


def worlds(tmp_path, log, facts):
    """Yield a world and a fate for each step, in both kinds."""
    for step, is_done in itertools.product(
        range(count_steps(tmp_path, log, facts)), (False, True)
    ):
        directory = tmp_path / f"{step}-{is_done}"
        directory.mkdir(parents=True)
        with pytest.MonkeyPatch.context() as patch:
            fate = Fate(patch, step, is_done=is_done)
            yield World(directory, log.config), fate
        assert fate.has_struck


def test_an_agent_killed_at_any_step_says_one_thing_and_proves_it(
    tmp_path, log, started
):
    facts = [started, closed(started)]
    # Secret, commitments, three shares, draft, said, sent; seed, proof and so on.
    assert count_steps(tmp_path, log, facts) == 13
    for number, (world, _) in enumerate(worlds(tmp_path / "x", log, facts)):
        live(world, facts)
        check_proof(world)
        assert len(world.proofs()) == 1, number
        assert len(world.secrets()) == 1
        live(world, [sealed(started)])
        assert world.secrets() == []


def test_an_agent_killed_at_any_step_gives_a_second_seed_no_second_proof(
    tmp_path, log, started
):
    """The decider lies: it has two sets closed, or the same one twice."""
    first, second = closed(started), closed(started, OTHER_SEED)
    for world, fate in worlds(tmp_path / "x", log, [started, first]):
        agent = world.start()
        for fact in (started, first):
            try:
                agent.hear(fact)
            except Killed:
                break
        agent = live(world, [started, second, first, second])
        assert fate.has_struck
        # In the store as well: it is anybody's to read.
        assert len(world.proofs()) == 1
        (proof,) = world.of(e.NormProofSubmitted)
        assert world.blobs[proof.proof.sha256] == world.proofs()[0]


def test_a_second_seed_is_refused_by_who_was_not_killed_too(world, started, caplog):
    agent = world.start()
    agent.hear(started)
    agent.hear(closed(started))
    agent.hear(closed(started, OTHER_SEED))
    world.start().hear(closed(started, OTHER_SEED))
    assert len(world.said) == 2
    assert len(world.proofs()) == 1
    check_proof(world)


@pytest.mark.parametrize("content", [None, b"", b"short", b"x" * 200])
def test_secrets_that_are_gone_or_damaged_prove_nothing(
    world, started, content, caplog
):
    world.start().hear(started)
    (path,) = world.secrets()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    world.start().hear(closed(started))
    assert world.of(e.NormProofSubmitted) == []
    assert world.proofs() == []
    assert "not proving" in caplog.text


# The parts


@pytest.fixture
def secret(log):
    delta = np.linspace(-0.001, 0.001, log.num_parameters)
    return Secret.make(delta, log.config)


def test_a_secret_commits_the_same_again_and_from_its_file(secret, log):
    state = secret.commit(log.config)
    assert secret.commit(log.config).statement == state.statement
    loaded = Secret.from_bytes(secret.to_bytes())
    again = loaded.commit(log.config)
    assert again.statement == state.statement
    assert (again.masks, again.blindings, again.nonce_key) == (
        state.masks,
        state.blindings,
        state.nonce_key,
    )
    other = Secret.make(np.zeros(log.num_parameters), log.config)
    assert other.seed != secret.seed


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: 25 + 32],
        lambda data: b"X" + data[1:],
        lambda data: data.replace(b"/v1", b"/v2"),
    ],
)
def test_a_damaged_secret_is_none(secret, change):
    with pytest.raises(SecretError, match="damaged"):
        Secret.from_bytes(change(secret.to_bytes()))


def test_a_proof_is_the_same_again(secret, log, started):
    blobs = BlobDict()
    state = secret.commit(log.config)
    update, other = (
        submit_commitment(
            state,
            started,
            log.config,
            blobs,
            agent_id=ME,
            num_examples=1,
            loss_micros=0,
        )
        for _ in range(2)
    )
    # Shares are drawn anew: only what was written down may be said.
    assert update.commitments == other.commitments
    assert all(a != b for a, b in zip(update.shares, other.shares, strict=True))
    proof = prove(state, update, closed(started), log.config)
    assert prove(state, update, closed(started), log.config) == proof
    assert prove(state, other, closed(started), log.config) != proof
    assert prove(state, update, closed(started, OTHER_SEED), log.config) != proof


def test_a_commitment_is_bound_to_its_first_projection(tmp_path):
    SecretKeeper(tmp_path).bind("round-1", SEED)
    keeper = SecretKeeper(tmp_path)
    keeper.bind("round-1", SEED)
    keeper.bind("round-2", OTHER_SEED)
    with pytest.raises(SecretError, match="never"):
        keeper.bind("round-1", OTHER_SEED)


def test_a_keeper_forgets_all_but_what_it_is_told(tmp_path, secret, log):
    keeper = SecretKeeper(tmp_path)
    state = secret.commit(log.config)
    keeper.keep("round-1", secret, state)
    assert keeper.find("round-1", log.config) is state
    keeper.forget(but="round-1")
    assert keeper.find("round-1", log.config) is state
    found = SecretKeeper(tmp_path).find("round-1", log.config)
    assert found.statement == state.statement
    keeper.forget(but="round-2")
    for each in (keeper, SecretKeeper(tmp_path)):
        with pytest.raises(SecretError, match="gone"):
            each.find("round-1", log.config)


def test_a_private_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "file"
    (tmp_path / ".file.draft").write_bytes(b"what a crash left")
    write_private(path, b"one")
    write_private(path, b"other")
    assert path.read_bytes() == b"other"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["file"]


def test_nothing_secret_is_shown(world, secret, log, started, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    compute_coefficients = norm_prover._compute_coefficients
    polynomials = []

    def remember(*arguments):
        polynomials.append(compute_coefficients(*arguments))
        return polynomials[-1]

    monkeypatch.setattr(norm_prover, "_compute_coefficients", remember)
    state = secret.commit(log.config)
    keeper = SecretKeeper(world.directory)
    keeper.keep("round-1", secret, state)
    agent = world.start()
    live(world, [started, closed(started), closed(started, OTHER_SEED)], agent)
    [polynomial] = polynomials
    # Short ones could be anything else's digits.
    numbers = [abs(n) for n in polynomial.values() if abs(n) > 10**9]
    assert len(numbers) > 3
    shown = "".join(
        (
            *(repr(secret), str(secret), repr(state), repr(keeper), repr(agent)),
            *(repr(polynomial), str(polynomial), f"{polynomial}", caplog.text),
        )
    )
    assert not any(str(number) in shown for number in numbers)
    kept = Secret.from_bytes(world.secrets()[0].read_bytes())
    for hidden in (secret, kept):
        assert hidden.seed.hex() not in shown
        assert repr(hidden.seed) not in shown
        assert str(hidden.values[:3])[1:-1] not in shown
        again = hidden.commit(log.config)
        for number in (*again.masks[:3], *again.blindings[:3], *again.squares):
            assert number < 100 or str(number) not in shown
    assert "Secret()" in shown

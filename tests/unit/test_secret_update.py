"""An agent in a secret round: it says one thing and proves it once, killed or not."""

import contextlib
import itertools
import logging
import os
import pathlib
import secrets
import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest

import producers.agent
from adapters.kafka import Record, make_headers
from adapters.ledger import Genesis
from producers import agent_directory
from producers.agent import Agent, AgentOptions
from producers.agent_directory import (
    AgentDirectory,
    AgentDirectoryError,
    renew_place,
)
from producers.agent_terms import Floors, Terms
from producers.kept_update import KeptUpdate, UpdateKeeper
from producers.receipts import ANSWERS
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
from protocol.configuration import get_mpc
from protocol.envelope import sign_event
from protocol.mpc import MpcShape, open_shares, parse_proof, parse_statement
from protocol.norm_proof import InvalidProofError, Projection, verify_norm_proof
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import BlobDict, frame, make_key, read_blocks, unframe
from tests.secret_builder import make_sealing_key, start_secret_log
from tests.simulation.federation import GENESIS, edit

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
        num_commitments=3,
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
        num_contributions=2,
        contributions_sha256=bytes(32),
        num_examples=0,
        base_model=started.base_model,
        fractional_bits=started.fractional_bits,
        num_parameters=started.num_parameters,
    )


def record_of(fact, signer="DECIDER"):
    headers = make_headers(fact, codec.encode(fact), make_key(signer), GENESIS, "")
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

    def publish(self, event, key, genesis, *, traceparent=None):
        assert genesis == GENESIS
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
        self._directory = AgentDirectory(directory)
        self._terms = Terms(directory, Floors(), Genesis(config, GENESIS))
        self._terms.accept_first(None)
        self._answered_elsewhere = set()
        self._key = make_key(ME)
        self._registry = Registry()
        self._publisher = Publisher(said)
        self._store = blobs
        self._genesis = Genesis(config, GENESIS)
        self._keeper = SecretKeeper(directory)
        self._updates = UpdateKeeper(directory)
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

    def secrets(self):
        return sorted(p for p in self.directory.iterdir() if ".secret" in p.name)


@pytest.fixture
def world(tmp_path, log):
    return World(tmp_path / "agent", log.config)


def check_proof(world, seed=SEED):
    """Check that what was said proves what was said."""
    (update,), (proof,) = world.of(e.UpdateCommitted), world.of(e.NormProofSubmitted)
    statement = parse_statement(
        GENESIS, world.config, update, world.blobs[update.commitments.sha256]
    )
    projection = Projection.expand(
        seed, num_rows=statement.num_rows, row_length=statement.row_length
    )
    blob = world.blobs[proof.proof.sha256]
    verify_norm_proof(statement, parse_proof(blob), projection)


# Whom it believes


def test_another_federations_words_count_nothing_under_this_ones_name(world, started):
    """One decider signs for all its federations: a record can be written anew."""
    agent = world.start()
    elsewhere = record_of(replace(started, federation_id="founded-by-a-stranger"))
    agent._act_on(replace(elsewhere, key=started.federation_id.encode()))
    assert not world.said
    agent.hear(started)
    assert world.said


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
    values = values_of(world, update)
    secret = Secret.from_bytes(world.secrets()[0].read_bytes())
    assert np.array_equal(values, secret.values)
    assert 0 < compute_squared_norm(values) <= get_mpc(world.config).norm_bound ** 2


def test_an_update_that_is_too_long_is_clipped(world, started):
    world.start(delta=np.full(started.num_parameters, 10.0)).hear(started)
    secret = Secret.from_bytes(world.secrets()[0].read_bytes())
    assert compute_squared_norm(secret.values) <= get_mpc(world.config).norm_bound ** 2
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
        "another": replace(started, round=2, last_ticket=bytes(32)),
    }[end]
    agent.hear(fact)
    assert world.secrets() == []

    def is_on_disk(hidden):
        files = (file.read_bytes() for file in world.directory.iterdir())
        return any(hidden in data for data in files)

    assert not is_on_disk(secret.seed)
    # The update is what it says for this base model, until another one comes.
    update = secret.values.astype("<i4").tobytes()[:16]
    assert is_on_disk(update)
    (world.directory / f".base-{'0' * 64}.update.draft").write_bytes(update)
    other = replace(started.base_model, sha256=bytes(32))
    agent.hear(replace(started, round=3, last_ticket=bytes(32), base_model=other))
    assert not is_on_disk(update)
    # And they are gone for good: in memory too.
    said = list(world.said)
    agent.hear(closed(started, OTHER_SEED))
    assert world.said == said
    assert len(world.proofs()) == 1


def values_of(world, update):
    """Return what an agent shared, as all parties together could."""
    shape = MpcShape.of(world.config)
    shares = (
        open_shares(
            GENESIS,
            update,
            share.party,
            world.blobs[share.sealed.sha256],
            make_sealing_key(share.party),
            shape,
        ).values
        for share in update.shares
    )
    return sum(shares).view(np.int64)


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("is_proved", [False, True])
def test_for_one_base_model_it_says_one_update_and_nothing_else_twice(
    world, started, is_killed, is_proved
):
    """However often the round is asked for again, and whatever training would give."""
    agent = world.start()
    rounds = [replace(started, round=n, cause=bytes([n]) * 32) for n in (1, 2, 3)]
    for fact in rounds:
        agent.hear(fact)
        if is_proved:
            agent.hear(closed(fact, seed=fact.cause))
        if is_killed:
            agent = world.start()
    updates = sorted(world.of(e.UpdateCommitted), key=lambda u: u.round)
    assert [update.round for update in updates] == [1, 2, 3]
    first, *others = (values_of(world, update) for update in updates)
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
    assert len(proofs) == (3 if is_proved else 0)
    for name in ("projections", "z_mask", "z", "z_blinding"):
        assert len({getattr(proof, name) for proof in proofs}) == len(proofs)
    # Another base model is trained on anew.
    other = replace(started.base_model, sha256=b"\1" * 32)
    agent.hear(replace(rounds[2], round=4, base_model=other))
    (last,) = (u for u in world.of(e.UpdateCommitted) if u.round == 4)
    assert not np.array_equal(values_of(world, last), first)


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


@pytest.mark.parametrize("loss_micros", [None, 0, -3, 345_678])
def test_an_update_is_said_again_only_as_it_is_encoded(tmp_path, log, loss_micros):
    keeper, config, started = UpdateKeeper(tmp_path), log.config, log.started
    values = np.arange(-150, started.num_parameters - 150)
    keeper.keep(started, config, KeptUpdate(values, 12, loss_micros))
    found = keeper.find(started, config)
    assert np.array_equal(found.values, values)
    assert (found.num_examples, found.loss_micros) == (12, loss_micros)
    bound = get_mpc(config).norm_bound
    other = replace(started.base_model, sha256=bytes(32))
    for otherwise in (
        (started, edit(config, norm_bound=bound - 1)),
        (replace(started, fractional_bits=started.fractional_bits - 1), config),
        (replace(started, num_parameters=started.num_parameters + 1), config),
        (replace(started, base_model=other), config),
    ):
        assert keeper.find(*otherwise) is None


def test_secrets_of_other_rounds_do_not_outlive_the_start_of_one(world, started):
    world.start().hear(started)
    again = replace(started, cause=b"\1" * 32)  # a federation founded anew
    world.start().hear(again)
    (path,) = world.secrets()
    assert path.name.startswith("round-1-" + "01" * 8)


def test_who_is_not_drawn_says_nothing(world, started):
    agent = world.start()
    agent.hear(replace(started, last_ticket=bytes(32)))
    agent.hear(closed(started))
    assert world.said == []
    names = {path.name for path in world.directory.iterdir()}
    assert names == {"lock", "tasks"}


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


def test_who_remembers_no_commitment_does_not_prove(world, started):
    agent = world.start()
    agent.hear(closed(started))
    assert world.said == []


def test_a_bound_that_is_too_small_is_declined(tmp_path, log, started):
    world = World(tmp_path, edit(log.config, norm_bound=3))
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


def test_an_agent_killed_at_any_step_says_one_thing_and_proves_it(
    tmp_path, log, started
):
    facts = [started, closed(started)]
    # Update, secret, commitments, three shares, draft, said, sent; seed, proof …
    assert count_steps(tmp_path, log, facts) == 14
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


# Copies


def find_proofs(world):
    """Return which commitment the proofs in the store prove, and which seed under."""
    found = []
    for update in world.of(e.UpdateCommitted):
        blob = world.blobs[update.commitments.sha256]
        statement = parse_statement(GENESIS, world.config, update, blob)
        for seed, proof in itertools.product((SEED, OTHER_SEED), world.proofs()):
            projection = Projection.expand(
                seed, num_rows=statement.num_rows, row_length=statement.row_length
            )
            with contextlib.suppress(InvalidProofError):
                verify_norm_proof(statement, parse_proof(proof), projection)
                found.append((update.commitments.sha256, seed, proof))
    return found


def test_a_copy_from_before_the_proof_proves_nothing_of_its_own(
    tmp_path, world, started, caplog
):
    world.start().hear(started)
    copy = world.copy_to(tmp_path / "copy")
    world.start().hear(closed(started))
    copy.start().hear(closed(started, OTHER_SEED))
    world.restore(copy.directory)
    world.start().hear(closed(started, OTHER_SEED))
    assert len(world.proofs()) == 1
    check_proof(world)
    assert caplog.text.count("RESTORED_FROM_COPY") == 2
    assert "docs/howto/what-may-never-be-restored.md" in caplog.text


def test_a_copy_proves_nothing_even_if_it_comes_first(tmp_path, world, started):
    """Which of two is the copy nobody can ask it."""
    world.start().hear(started)
    copy = world.copy_to(tmp_path / "copy")
    copy.start().hear(closed(started, OTHER_SEED))
    assert world.proofs() == []
    world.start().hear(closed(started))
    check_proof(world)


def test_a_copy_goes_on_with_the_next_round(tmp_path, world, started):
    world.start().hear(started)
    copy = world.copy_to(tmp_path / "copy")
    agent = copy.start()
    agent.hear(closed(started))
    agent.hear(sealed(started))
    assert copy.secrets() == []
    following = replace(started, round=2, cause=b"\2" * 32)
    agent.hear(following)
    agent.hear(closed(following))
    assert [proof.round for proof in world.of(e.NormProofSubmitted)] == [2]


def copy_by_link(saved, directory):
    shutil.copytree(saved, directory, copy_function=os.link)


def copy_what_differs(saved, directory):
    """As rsync does: by size and time of change, whatever it finds missing as well."""
    directory.mkdir(exist_ok=True)
    for path in saved.iterdir():
        target, now = directory / path.name, path.stat()
        then = target.stat() if target.exists() else None
        if then is None or (then.st_size, then.st_mtime_ns) != (
            now.st_size,
            now.st_mtime_ns,
        ):
            shutil.copy2(path, target)


def copy_secrets_alone(saved, directory):
    for path in saved.iterdir():
        target = directory / path.name
        if path.suffix in {".secret", ".sent"} and not target.exists():
            shutil.copy2(path, target)


@pytest.mark.parametrize("takes", [shutil.copytree, copy_by_link, copy_what_differs])
@pytest.mark.parametrize("puts_back", [copy_what_differs, copy_secrets_alone])
@pytest.mark.parametrize("is_over", [False, True])
def test_whatever_is_put_back_into_a_directory_proves_nothing_again(
    tmp_path, world, started, takes, puts_back, is_over
):
    world.start().hear(started)
    saved = tmp_path / "saved"
    takes(world.directory, saved)
    agent = world.start()
    agent.hear(closed(started))
    if is_over:
        agent.hear(sealed(started))
        for path in world.directory.glob("*.seed"):
            path.unlink()  # nothing says so, and nothing forbids it
        for path in world.directory.glob("proof-*"):
            path.unlink()
    puts_back(saved, world.directory)
    world.start().hear(closed(started, OTHER_SEED))
    assert len(world.proofs()) <= 1
    assert {seed for _, seed, _ in find_proofs(world)} <= {SEED}


def test_a_disk_that_is_put_back_beneath_a_machine_that_starts_again_proves_nothing(
    tmp_path, world, started, monkeypatch, caplog
):
    """Its files are the very same then, times and all."""
    world.start().hear(started)
    boot = tmp_path / "boot_id"
    boot.write_text("another one")
    monkeypatch.setattr(agent_directory, "_BOOT_ID", boot)
    world.start().hear(closed(started))
    assert world.proofs() == []
    assert "RESTORED_FROM_COPY" in caplog.text


def test_a_copy_of_what_was_proved_proves_the_same_again(tmp_path, world, started):
    world.start().hear(started)
    agent = world.start()
    agent.hear(closed(started))
    for path in world.directory.glob("proof-*"):
        path.unlink()  # as if it had been killed before it was written down
    copy = world.copy_to(tmp_path / "copy").start()
    copy.hear(closed(started, OTHER_SEED))
    copy.hear(closed(started))
    check_proof(world)
    assert len(world.proofs()) == 1


@pytest.mark.parametrize("is_put_back", [False, True])
def test_no_copy_of_any_moment_proves_a_commitment_twice(
    tmp_path, log, started, is_put_back
):
    facts = [started, closed(started)]
    lies = [started, closed(started, OTHER_SEED)]
    has_two = False
    after = worlds(tmp_path / "x", log, facts, kinds=(True,))
    for number, (world, _) in enumerate(after):
        agent = world.start()
        for fact in facts:
            try:
                agent.hear(fact)
            except Killed:
                break
        copy = world.copy_to(tmp_path / f"copy-{number}")
        live(world, facts)
        if is_put_back:
            world.restore(copy.directory)
            copy = world
        live(copy, lies)
        assert world.proofs()
        if len(world.proofs()) > 1:
            # A copy from before the commitment commits anew, and proves that.
            has_two = True
            proved = [commitment for commitment, _, _ in find_proofs(world)]
            assert len(proved) == len(set(proved)) == 2, number
    assert has_two


def test_a_directory_is_for_one_process_at_a_time(world):
    agent = world.start()
    with pytest.raises(AgentDirectoryError, match="another process uses"):
        AgentDirectory(world.directory)
    agent._directory.close()
    agent._directory.close()
    AgentDirectory(world.directory).close()


def test_a_directory_without_times_of_change_is_refused(tmp_path, monkeypatch):
    AgentDirectory(tmp_path).close()
    monkeypatch.setattr(agent_directory, "_RENEWED_WITHIN_S", 0.0)
    monkeypatch.setattr(os, "utime", lambda _: None)
    with pytest.raises(OSError, match="keeps no times of change"):
        renew_place(tmp_path)


# What the log has under the agent's key


def make_leaves(log, *, signer=ME):
    """Return the opened leaves of a log, as if one had signed all answers."""
    for read in read_blocks(log):
        for leaf in read.leaves:
            if not isinstance(leaf.sequenced.event, ANSWERS):
                yield leaf
                continue
            signature = sign_event(
                make_key(signer), leaf.sequenced.genesis, leaf.leaf.event
            )
            yield replace(leaf, leaf=replace(leaf.leaf, signature=signature))


@pytest.fixture(scope="module")
def answered():
    """A log on which everybody has committed in the first round."""
    log = start_secret_log()
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
    agent.hear(closed(started))
    assert world.said == []
    following = replace(started, round=2, cause=b"\2" * 32)
    agent.hear(following)
    assert [event.round for event in world.said] == [2]


def test_what_is_in_the_journal_is_the_agents_own(world, answered, started, caplog):
    agent = world.start()
    number = 0
    for leaf in make_leaves(answered):
        event = leaf.sequenced.event
        if isinstance(event, ANSWERS) and event.agent_id == ME:
            suffix = ("avro", "sent")[number % 2]
            name = f"answer-{number}.{suffix}"
            (world.directory / name).write_bytes(leaf.leaf.event)
            number += 1
        agent._notice(leaf)
    assert number > 1
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
    monkeypatch.setattr(producers.agent, "read_log", lambda *_, **__: iter(reads))
    world.start()._enrol()
    assert caplog.text.count("ANSWERED_ELSEWHERE") == 1
    world.last.hear(started)
    assert world.said == []  # it did not ask to join either: the log has that


def test_what_another_process_says_meanwhile_is_noticed_too(world, started, caplog):
    agent = world.start()
    log = start_secret_log()
    log.request_round()
    recall(agent, make_leaves(log))
    agent.hear(started)
    log.commit(ME)
    log.settle()
    recall(agent, make_leaves(log))
    assert "ANSWERED_ELSEWHERE" in caplog.text
    agent.hear(closed(started))
    assert len(world.said) == 1
    assert world.proofs() == []


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
        lambda data: data.replace(b"/v2", b"/v1"),
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
            GENESIS,
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
    proof = prove(state, update, closed(started), log.config, GENESIS)
    assert prove(state, update, closed(started), log.config, GENESIS) == proof
    assert prove(state, other, closed(started), log.config, GENESIS) != proof
    assert (
        prove(state, update, closed(started, OTHER_SEED), log.config, GENESIS) != proof
    )


def test_a_commitment_is_bound_to_its_first_projection(tmp_path, secret, log):
    state = secret.commit(log.config)
    SecretKeeper(tmp_path).keep("round-1", secret, state)
    SecretKeeper(tmp_path).bind("round-1", SEED)
    keeper = SecretKeeper(tmp_path)
    keeper.bind("round-1", SEED)
    with pytest.raises(SecretError, match="never"):
        keeper.bind("round-1", OTHER_SEED)
    keeper.keep("round-2", secret, state)
    keeper.bind("round-2", OTHER_SEED)
    with pytest.raises(SecretError, match="gone"):
        keeper.bind("round-3", SEED)


def test_an_attempt_that_was_said_nowhere_leaves_no_secret(tmp_path, secret, log):
    """Killed before it was written down what is said, and then moved."""
    keeper = SecretKeeper(tmp_path)
    keeper.keep("round-1", secret, secret.commit(log.config))
    renew_place(tmp_path)
    other = Secret.make(np.zeros(log.num_parameters), log.config)
    keeper.keep("round-1", other, other.commit(log.config))
    (path,) = tmp_path.glob("*.secret")
    assert Secret.from_bytes(path.read_bytes()).seed == other.seed
    keeper.bind("round-1", SEED)


def test_bytes_that_are_drawn_twice_give_no_mask_twice(log, started, monkeypatch):
    """A machine that is put back with its memory may draw what it drew before."""
    deltas = (np.linspace(-0.001, 0.001, log.num_parameters), np.zeros(1))
    monkeypatch.setattr(secrets, "token_bytes", lambda n: b"\7" * n)
    made = []
    for delta in deltas:
        secret = Secret.make(np.resize(delta, log.num_parameters), log.config)
        state = secret.commit(log.config)
        blobs = BlobDict()
        update = submit_commitment(
            state,
            started,
            log.config,
            GENESIS,
            blobs,
            agent_id=ME,
            num_examples=1,
            loss_micros=0,
        )
        shares = [
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
        made.append((secret, state, shares))
    (one, state, shares), (other, other_state, other_shares) = made
    assert one.seed == other.seed
    assert not np.array_equal(one.values, other.values)
    assert not set(state.masks) & set(other_state.masks)
    assert not set(state.blindings) & set(other_state.blindings)
    assert state.nonce_key != other_state.nonce_key
    for share, other_share in zip(shares, other_shares, strict=True):
        assert not np.any(share.values == other_share.values)


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

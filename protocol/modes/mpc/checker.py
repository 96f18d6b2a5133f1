"""Aggregation `mpc`: from the blobs of an MPC round to its result.

Agents, parties, the aggregator and every auditor run these functions: they make and
check an agent's commitments and proof, a party's links, which commitments count,
whether a party's part of the sum is its own, and the next global model. Except for
opening shares, anybody can repeat them: they need no key.

Blobs:

- commitments: rows, squares, masks; compressed points, 48 bytes each;
- norm proof, links of a party (`ShareLinks`), its part of the sum (`PartialSum`):
  single-object encodings;
- a sealed share: see `protocol.modes.mpc.sealing`.

Sources: PRIVACY.md sections 1 to 3 and 9, ADR 0033.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.model import Base, RoundResult, apply_sum
from protocol.modes.mpc.commitments import (
    POINT_SIZE,
    SCALAR_SIZE,
    InvalidEncodingError,
    choose_row_length,
    combine_rows,
    compute_num_rows,
    encode_scalar,
    parse_points,
    parse_scalar,
    parse_scalars,
)
from protocol.modes.mpc.configuration import get_mpc
from protocol.modes.mpc.norm_proof import (
    Challenges,
    InvalidProofError,
    NormProof,
    NormStatement,
    compute_blinding_challenges,
    compute_challenges,
    expand_projection,
    start_transcript,
    verify_norm_proofs,
)
from protocol.modes.mpc.projections import NUM_PROJECTIONS, Projection
from protocol.modes.mpc.round import Committed, MpcRound
from protocol.modes.mpc.sealing import (
    SealedPlace,
    SealError,
    SealingSecretKey,
    open_share,
)
from protocol.modes.mpc.share_link import (
    NUM_SUM_PROJECTIONS,
    Link,
    PartySum,
    SharesDifferError,
    SumMasks,
    WrongPartialError,
    WrongSumError,
    compute_link,
    expand_sum_projection,
    open_aggregate,
    verify_link,
    verify_party_sum,
)
from protocol.modes.mpc.shares import (
    WORD_SIZE,
    Share,
    ShareRefusedError,
    ShareShape,
    parse_share,
)
from protocol.modes.problem import (
    MAX_DETAIL_LENGTH,
    UNFORESEEN,
    Fetch,
    RoundError,
    explain_unforeseen,
)
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason

STATEMENT_DOMAIN: Final = b"folkmoot/norm-statement/v1\n"
SHARE_DOMAIN: Final = b"folkmoot/share-statement/v1\n"
SEALING_ALLOWANCE_BYTES: Final = 2_048
"""Encapsulated key and tag take 48 bytes, or 1,136 with ML-KEM-768."""
PROOF_ALLOWANCE_BYTES: Final = 6_144
"""Projections take 4,635 bytes; lengths and counts a few."""
_LINK_OVERHEAD_BYTES: Final = 1_024
"""Names, reason, detail and lengths of an entry; ours take less."""


@dataclass(frozen=True, slots=True)
class MpcShape:
    """How a federation's updates are committed to and shared.

    Attributes:
        num_values: d, length of an update.
        row_length: n, columns.
        num_rows: m, rows of values.
    """

    num_values: int
    row_length: int
    num_rows: int

    @classmethod
    def of(cls, config: e.FederationConfigured) -> MpcShape:
        """Return a federation's shape."""
        num_values = config.num_parameters
        row_length = choose_row_length(num_values)
        return cls(num_values, row_length, compute_num_rows(num_values, row_length))

    @property
    def shares(self) -> ShareShape:
        """The shape of its shares."""
        return ShareShape(self.num_values, self.num_rows)

    @property
    def commitments_size(self) -> int:
        """Size of the blob of commitments, in bytes."""
        return (self.num_rows + 2) * POINT_SIZE

    @property
    def max_sealed_size(self) -> int:
        """The largest sealed share, in bytes."""
        return self.shares.compute_max_plaintext_size() + SEALING_ALLOWANCE_BYTES

    @property
    def max_proof_size(self) -> int:
        """The largest norm proof, in bytes."""
        points = (3 * (self.num_rows + 2) + 4) * POINT_SIZE
        return points + (2 * self.row_length + 3) * SCALAR_SIZE + PROOF_ALLOWANCE_BYTES

    @property
    def max_links_size(self) -> int:
        """The largest links of a party, for 256 agents, in bytes."""
        words = NUM_PROJECTIONS + NUM_SUM_PROJECTIONS
        return 256 * (words * WORD_SIZE + SCALAR_SIZE + _LINK_OVERHEAD_BYTES)

    @property
    def max_partial_size(self) -> int:
        """A party's largest part of the sum, in bytes."""
        words = self.num_values + NUM_SUM_PROJECTIONS
        return words * WORD_SIZE + (self.num_rows + 1) * SCALAR_SIZE + 256


# What is bound to what


def compute_context(
    genesis: bytes,
    config: e.FederationConfigured,
    update: e.UpdateCommitted,
    started_leaf_hash: bytes,
) -> bytes:
    """Return what a norm proof is bound to, besides numbers and points.

    The log, by its genesis hash, and the round as it was opened, which fix the
    configuration; agent, base model, weight, parties and every sealed share: so a proof
    fits no other update, nor this one with other shares, and nobody knows its
    projection before all of that is fixed. In particular it covers everything that
    decides how a sealed share opens. The proof itself follows from it, and is not part
    of it.

    Args:
        genesis: Hash of the log's genesis, 32 bytes.
        config: The federation's parameters.
        update: What the agent says; its proof is ignored.
        started_leaf_hash: Hash of the leaf with the round's `RoundStarted`, 32 bytes.
    """
    parts = [
        genesis,
        started_leaf_hash,
        update.federation_id.encode(),
        update.agent_id.encode(),
        update.base_model_sha256,
        update.commitments.sha256,
    ]
    for party, share in zip(get_mpc(config).parties, update.shares, strict=True):
        parts += [
            party.name.encode(),
            party.public_key,
            party.sealing_key,
            share.sealed.sha256,
            share.commitment,
        ]
    numbers = (update.round, update.num_examples, config.fractional_bits)
    return (
        STATEMENT_DOMAIN
        + b"".join(number.to_bytes(8, "big") for number in numbers)
        + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    )


def make_place(
    genesis: bytes, update: e.UpdateCommitted, party: str, commitment: bytes
) -> SealedPlace:
    """Return the place where a party's share of an update counts.

    Args:
        genesis: Genesis hash of the update's log, 32 bytes.
        update: The update; its shares are ignored.
        party: The party.
        commitment: The share commitment, 48 bytes.
    """
    stated = update.base_model_sha256 + update.commitments.sha256 + commitment
    return SealedPlace(
        genesis=genesis,
        federation_id=update.federation_id,
        round=update.round,
        agent_id=update.agent_id,
        party=party,
        statement_digest=hashlib.sha256(SHARE_DOMAIN + stated).digest(),
    )


def parse_commitments(
    shape: MpcShape, commitments: bytes
) -> tuple[tuple[bytes, ...], bytes, bytes]:
    """Return an agent's commitments to rows, squares and masks.

    Raises:
        RoundError: the blob has another size. Its points are checked with a proof.
    """
    if len(commitments) != shape.commitments_size:
        detail = (
            f"{len(commitments)} bytes of commitments; {shape.num_rows} rows, squares "
            f"and masks take {shape.commitments_size}"
        )
        raise RoundError(Reason.WRONG_SHAPE, detail)
    *rows, squares, masks = (
        commitments[begin : begin + POINT_SIZE]
        for begin in range(0, len(commitments), POINT_SIZE)
    )
    return tuple(rows), squares, masks


def parse_statement(
    secret: MpcRound, update: e.UpdateCommitted, commitments: bytes
) -> NormStatement:
    """Return what an agent has to prove.

    Raises:
        RoundError: the blob has another size.
    """
    shape = MpcShape.of(secret.config)
    rows, squares, masks = parse_commitments(shape, commitments)
    return NormStatement(
        context=compute_context(
            secret.genesis, secret.config, update, secret.started_leaf_hash
        ),
        num_values=shape.num_values,
        row_length=shape.row_length,
        squared_bound=secret.mpc.norm_bound**2,
        rows=rows,
        squares=squares,
        masks=masks,
    )


# What a party says


def open_shares(
    genesis: bytes,
    update: e.UpdateCommitted,
    party: str,
    sealed: bytes,
    key: SealingSecretKey,
    shape: MpcShape,
    *,
    was_linked: bool = False,
) -> Share:
    """Return a party's share of an update. **Secret:** the result.

    Args:
        genesis: Hash of the log's genesis, 32 bytes.
        update: The agent's commitment.
        party: The party.
        sealed: Its sealed share, digest verified.
        key: The party's key.
        shape: The shape of the round's updates.
        was_linked: Whether this share was linked, and so checked already.

    Raises:
        RoundError: it cannot be opened, or does not match the agent's commitment:
            BAD_SHARE.
    """
    (share,) = (share for share in update.shares if share.party == party)
    place = make_place(genesis, update, party, share.commitment)
    commitment = None if was_linked else share.commitment
    try:
        plaintext = open_share(sealed, key, place)
        return parse_share(plaintext, shape=shape.shares, commitment=commitment)
    except (SealError, ShareRefusedError) as error:
        raise RoundError(Reason.BAD_SHARE, str(error)) from error


def encode_links(entries: Mapping[str, Link | RoundError]) -> bytes:
    """Return the blob of a party's links, by agent."""
    return codec.encode(
        e.ShareLinks(
            entries=tuple(
                _encode_link(agent_id, entries[agent_id])
                for agent_id in sorted(entries)
            )
        )
    )


def _encode_link(agent_id: str, link: Link | RoundError) -> e.ShareLink:
    if isinstance(link, RoundError):
        return e.ShareLink(
            agent_id=agent_id,
            reason=link.reason,
            detail=link.detail[:MAX_DETAIL_LENGTH],
            projections=b"",
            blinding=b"",
            sum_projections=b"",
        )
    return e.ShareLink(
        agent_id=agent_id,
        reason="",
        detail="",
        projections=link.projections.astype("<u8").tobytes(),
        blinding=encode_scalar(link.blinding),
        sum_projections=link.sum_projections.astype("<u8").tobytes(),
    )


def parse_links(blob: bytes) -> dict[str, Link | RoundError]:
    """Return a party's links by agent, or why it could not open the share.

    Raises:
        RoundError: the blob is no party's links, or not in the order of `encode_links`:
            MALFORMED_BLOB.
    """
    try:
        links = codec.decode_as(e.ShareLinks, blob)
    except codec.CodecError as error:
        raise RoundError(Reason.MALFORMED_BLOB, str(error)) from error
    # One order, so that links have one encoding and no agent appears twice: which of
    # two entries counts must not be up to the reader.
    for before, after in pairwise(entry.agent_id for entry in links.entries):
        if before >= after:
            detail = f"agent {after} after {before}: not in ascending order, each once"
            raise RoundError(Reason.MALFORMED_BLOB, detail)
    return {entry.agent_id: _parse_link(entry) for entry in links.entries}


def _parse_link(entry: e.ShareLink) -> Link | RoundError:
    if entry.reason:
        return RoundError(Reason.BAD_SHARE, f"{entry.reason}: {entry.detail}")
    if entry.detail:
        return RoundError(Reason.BAD_SHARE, "a detail, but no reason")
    sizes = len(entry.projections), len(entry.sum_projections)
    if sizes != (NUM_PROJECTIONS * WORD_SIZE, NUM_SUM_PROJECTIONS * WORD_SIZE):
        detail = "{} and {} bytes of projections".format(*sizes)
        return RoundError(Reason.BAD_SHARE, detail)
    try:
        blinding = parse_scalar(entry.blinding)
    except InvalidEncodingError as error:
        return RoundError(Reason.BAD_SHARE, str(error))
    return Link(
        projections=_to_words(entry.projections),
        blinding=blinding,
        sum_projections=_to_words(entry.sum_projections),
    )


def _to_words(data: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


def encode_partial(party_sum: PartySum) -> bytes:
    """Return the blob of a party's part of the sum."""
    return codec.encode(
        e.PartialSum(
            values=party_sum.values.astype("<u8", copy=False).tobytes(),
            masks=party_sum.masks.astype("<u8", copy=False).tobytes(),
            row_blindings=b"".join(map(encode_scalar, party_sum.row_blindings)),
            opening=encode_scalar(party_sum.opening),
        )
    )


def parse_partial(blob: bytes, shape: MpcShape) -> PartySum:
    """Return a party's part of the sum.

    Raises:
        RoundError: the blob does not have this shape: WRONG_PARTIAL.
    """
    try:
        partial = codec.decode_as(e.PartialSum, blob)
    except codec.CodecError as error:
        raise RoundError(Reason.WRONG_PARTIAL, str(error)) from error
    sizes = len(partial.values), len(partial.masks), len(partial.row_blindings)
    expected = (
        shape.num_values * WORD_SIZE,
        NUM_SUM_PROJECTIONS * WORD_SIZE,
        shape.num_rows * SCALAR_SIZE,
    )
    if sizes != expected:
        raise RoundError(Reason.WRONG_PARTIAL, f"lengths {sizes}, not {expected}")
    try:
        blindings = parse_scalars(partial.row_blindings)
        opening = parse_scalar(partial.opening)
    except InvalidEncodingError as error:
        raise RoundError(Reason.WRONG_PARTIAL, str(error)) from error
    return PartySum(
        values=_to_words(partial.values),
        masks=_to_words(partial.masks),
        row_blindings=tuple(blindings),
        opening=opening,
    )


def encode_proof(proof: NormProof) -> bytes:
    """Return the blob of a norm proof."""
    values = {part.name: getattr(proof, part.name) for part in fields(proof)}
    return codec.encode(e.NormProof(**values))


def parse_proof(blob: bytes) -> NormProof:
    """Return a norm proof; verifying it checks its numbers and points.

    Raises:
        RoundError: the blob is no norm proof: INVALID_PROOF.
    """
    try:
        proof = codec.decode_as(e.NormProof, blob)
    except codec.CodecError as error:
        raise RoundError(Reason.INVALID_PROOF, str(error)) from error
    names = (part.name for part in fields(NormProof))
    return NormProof(**{name: getattr(proof, name) for name in names})


# What follows


@dataclass(frozen=True, slots=True, eq=False)
class Proven:
    """A commitment and its norm proof, as read.

    Attributes:
        committed: The commitment.
        statement: What the proof should show.
        proof: The proof.
        challenges: The challenges of its transcript.
    """

    committed: Committed
    statement: NormStatement
    proof: NormProof
    challenges: Challenges

    @property
    def digest(self) -> bytes:
        """What identifies this update's links: statement and proof, 32 bytes."""
        return hashlib.sha256(self.challenges.digest).digest()


def read_proof(secret: MpcRound, agent_id: str, fetch: Fetch) -> Proven:
    """Fetch and parse an agent's commitment and proof; verifies nothing.

    Raises:
        RoundError: a blob is missing or malformed.
    """
    shape = MpcShape.of(secret.config)
    committed = secret.get_committed(agent_id)
    blob = fetch(committed.event.commitments, shape.commitments_size)
    statement = parse_statement(secret, committed.event, blob)
    proof = parse_proof(fetch(committed.event.proof, shape.max_proof_size))
    return Proven(committed, statement, proof, compute_challenges(statement, proof))


def read_seed(secret: MpcRound, agent_id: str, fetch: Fetch) -> bytes:
    """Return the seed of an agent's projection, 32 bytes; needs no proof.

    Raises:
        RoundError: its commitments are missing or malformed.
    """
    update = secret.get_committed(agent_id).event
    size = MpcShape.of(secret.config).commitments_size
    statement = parse_statement(secret, update, fetch(update.commitments, size))
    return start_transcript(statement)[1]


def link_share(
    proven: Proven, share: Share, sum_projection: Projection, masks: SumMasks
) -> Link:
    """Return a party's link of its share of a proven update."""
    statement, challenges = proven.statement, proven.challenges
    return compute_link(
        share,
        projection=expand_projection(statement, challenges.seed),
        challenges=compute_blinding_challenges(statement, challenges),
        sum_projection=sum_projection,
        masks=masks.expand(challenges.seed),
    )


class RoundVerifier:
    """Checks one round: proofs, links, parts of the sum, and the result."""

    def __init__(self, secret: MpcRound, fetch: Fetch) -> None:
        self._fetch = fetch
        self.shape = MpcShape.of(secret.config)
        """How updates are committed to and shared."""
        self._sum_projection: tuple[bytes, Projection] | None = None
        self._proven: dict[e.UpdateCommitted, Proven | RoundError] = {}
        self._links: dict[bytes, Mapping[str, Link | RoundError] | RoundError] = {}

    def get_sum_projection(self, secret: MpcRound) -> Projection:
        """Return R' of a closed round; expanded once."""
        assert secret.closed is not None, "there is none before"
        seed = secret.closed.sum_seed
        if self._sum_projection is None or self._sum_projection[0] != seed:
            projection = expand_sum_projection(
                seed, num_rows=self.shape.num_rows, row_length=self.shape.row_length
            )
            self._sum_projection = (seed, projection)
        return self._sum_projection[1]

    def verify_proofs(self, secret: MpcRound, agent_ids: Sequence[str]) -> None:
        """Verify norm proofs together; `find_reasons` has the outcome.

        Verified ones are not verified again. Threads may do this concurrently, for
        different agents.
        """
        read: list[Proven] = []
        for agent_id in agent_ids:
            update = secret.get_committed(agent_id).event
            if update in self._proven:
                continue
            try:
                proven = read_proof(secret, agent_id, self._fetch)
                # Only its party compares it with a share, and that party may lie.
                parse_points(share.commitment for share in update.shares)
                read.append(proven)
            except RoundError as error:
                self._proven[update] = error
            except InvalidEncodingError as error:
                detail = f"share commitments: {error}"
                self._proven[update] = RoundError(Reason.INVALID_PROOF, detail)
            except UNFORESEEN as error:
                self._proven[update] = explain_unforeseen(error)
        verdicts = verify_norm_proofs(
            [(proven.statement, proven.proof) for proven in read]
        )
        for proven, verdict in zip(read, verdicts, strict=True):
            update = proven.committed.event
            self._proven[update] = proven if verdict is None else _to_error(verdict)

    def has_proven(self, secret: MpcRound, agent_id: str) -> bool:
        """Return whether `verify_proofs` has handled an agent's proof."""
        return secret.get_committed(agent_id).event in self._proven

    def list_unproven(self, secret: MpcRound, agent_ids: Sequence[str]) -> list[str]:
        """Return the agents whose proofs `verify_proofs` has not handled."""
        return [a for a in agent_ids if not self.has_proven(secret, a)]

    def get_proven(self, secret: MpcRound, agent_id: str) -> Proven | RoundError:
        """Return what `verify_proofs` found for an agent."""
        return self._proven[secret.get_committed(agent_id).event]

    def find_reasons(
        self, secret: MpcRound, agent_ids: Sequence[str]
    ) -> dict[str, RoundError | None]:
        """Return for each agent why its commitment does not count; None if it does. All
        parties must have linked.
        """
        self.forget_absent()
        self.verify_proofs(secret, agent_ids)
        return {agent_id: self._find_reason(secret, agent_id) for agent_id in agent_ids}

    def forget_absent(self) -> None:
        """Forget blobs that were missing: they may be there by now."""
        remembered: tuple[dict[Any, Any], ...] = (self._proven, self._links)
        for known in remembered:
            for key, value in tuple(known.items()):
                if isinstance(value, RoundError) and value.blob is not None:
                    del known[key]

    def _find_reason(self, secret: MpcRound, agent_id: str) -> RoundError | None:
        proven = self.get_proven(secret, agent_id)
        if isinstance(proven, RoundError):
            return proven
        try:
            links = [
                self._get_link(secret, party.name, agent_id)
                for party in secret.mpc.parties
            ]
            verify_link(
                links,
                projections=proven.proof.projection_values,
                blinding=parse_scalar(proven.proof.z_blinding),
            )
        except RoundError as error:
            return error
        except SharesDifferError as error:
            return RoundError(Reason.SHARES_DIFFER, str(error))
        except UNFORESEEN as error:
            # In a party's links: no agent is to blame.
            return RoundError(Reason.BAD_SHARE, explain_unforeseen(error).detail)
        return None

    def _get_link(self, secret: MpcRound, party: str, agent_id: str) -> Link:
        ref = secret.links[party]
        if ref.sha256 not in self._links:
            self._links[ref.sha256] = _fetch_links(self._fetch, ref, self.shape)
        links = self._links[ref.sha256]
        if isinstance(links, RoundError):
            # It says nothing about any agent: no agent is to blame.
            detail = f"the links of party {party}: {links}"
            raise RoundError(Reason.BAD_SHARE, detail, links.blob)
        link = links.get(agent_id)
        if link is None:
            detail = f"party {party} says nothing of this share"
            raise RoundError(Reason.BAD_SHARE, detail)
        if isinstance(link, RoundError):
            raise RoundError(Reason.BAD_SHARE, f"party {party}: {link.detail}")
        return link

    def find_partial_problem(
        self, secret: MpcRound, party: str
    ) -> PartySum | RoundError:
        """Return a party's part of the sealed sum, or why it is not its own."""
        assert secret.sealed is not None, "only a sealed round has a sum"
        self.forget_absent()
        accepted = secret.accepted()
        index = [p.name for p in secret.mpc.parties].index(party)
        try:
            blob = self._fetch(secret.partials[party].blob, self.shape.max_partial_size)
            party_sum = parse_partial(blob, self.shape)
            verify_party_sum(
                party_sum,
                commitments=[c.event.shares[index].commitment for c in accepted],
                links=[
                    self._get_link(secret, party, c.event.agent_id) for c in accepted
                ],
                weights=[c.event.num_examples for c in accepted],
                shape=self.shape.shares,
                sum_projection=self.get_sum_projection(secret),
            )
        except RoundError as error:
            if error.blob is not None:
                return RoundError(error.blob.reason, str(error), error.blob)
            return RoundError(Reason.WRONG_PARTIAL, str(error))
        except (WrongPartialError, InvalidEncodingError) as error:
            # Or a share commitment is no point: its party has not opened it.
            return RoundError(Reason.WRONG_PARTIAL, str(error))
        except UNFORESEEN as error:
            return RoundError(Reason.WRONG_PARTIAL, explain_unforeseen(error).detail)
        return party_sum

    def find_claim_problem(
        self, secret: MpcRound, party: str, reason: str
    ) -> RoundError | None:
        """Return what is wrong with a rejected part of the sum, if anything.

        Args:
            secret: The round, with that part; with all parts for WRONG_SUM.
            party: Whose part it is.
            reason: Why it was rejected.
        """
        part = self.find_partial_problem(secret, party)
        if isinstance(part, RoundError):
            return part
        return self._find_sum_problem(secret) if reason == Reason.WRONG_SUM else None

    def _find_sum_problem(self, secret: MpcRound) -> RoundError | None:
        if not secret.has_all_partials:
            return None
        parts: list[PartySum] = []
        for party in secret.mpc.parties:
            part = self.find_partial_problem(secret, party.name)
            if isinstance(part, RoundError):
                return part
            parts.append(part)
        try:
            self._open(secret, parts)
        except RoundError as error:
            return error
        return None

    def compute_result(
        self, secret: MpcRound, party_sums: Sequence[PartySum], base: Base
    ) -> RoundResult:
        """Add up the parts, check that they open the commitments, apply the sum.

        Args:
            secret: The round, sealed.
            party_sums: One per party, each verified.
            base: What the sum is applied to.

        Raises:
            RoundError: they do not open them: a party lied, and nobody can say which.
                The round has no result.
        """
        assert secret.sealed is not None, "only a sealed round has a sum"
        total = self._open(secret, party_sums)
        return apply_sum(
            secret.config.strategy,
            total,
            secret.sealed,
            base.model,
            parameters=secret.config.strategy_parameters,
            state_blob=base.state,
        )

    def _open(
        self, secret: MpcRound, party_sums: Sequence[PartySum]
    ) -> NDArray[np.int64]:
        rows = combine_rows(
            [
                parse_commitments(
                    self.shape,
                    self._fetch(c.event.commitments, self.shape.commitments_size),
                )[0]
                for c in secret.accepted()
            ],
            [c.num_examples for c in secret.contributions],
        )
        try:
            return open_aggregate(party_sums, rows)
        except WrongSumError as error:
            raise RoundError(Reason.WRONG_SUM, str(error)) from error


def _fetch_links(
    fetch: Fetch, ref: e.BlobRef, shape: MpcShape
) -> Mapping[str, Link | RoundError] | RoundError:
    """Return a party's links by agent, or why nobody can read them."""
    try:
        return parse_links(fetch(ref, shape.max_links_size))
    except RoundError as error:
        return error
    except UNFORESEEN as error:
        return explain_unforeseen(error)


def _to_error(error: InvalidProofError) -> RoundError:
    return RoundError(Reason.INVALID_PROOF, str(error))

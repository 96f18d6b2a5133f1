"""Inconsistent agents and wrong sums are found; the latter's parties are named."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from protocol import share_link
from protocol.aggregation import MAX_TOTAL_EXAMPLES
from protocol.commitments import (
    SCALAR_ORDER,
    combine_rows,
    commit_rows,
    parse_scalar,
)
from protocol.norm_proof import (
    NUM_PROJECTIONS,
    Projection,
    compute_blinding_challenges,
    verify_norm_proof,
)
from protocol.norm_prover import commit_update, prove_norm
from protocol.share_link import (
    PartialRefusal,
    SharedProjection,
    SharesDifferError,
    WrongPartialError,
    WrongSumError,
    compute_links,
    compute_party_sum,
    open_aggregate,
    verify_link,
    verify_party_sum,
)
from protocol.shares import ShareShape, parse_share, split_update
from tests.vectors.shares.generate import SeededEntropy, make_secrets

ROW_LENGTH = 256
NUM_VALUES = 300
NUM_ROWS = 2
SHAPE = ShareShape(NUM_VALUES, NUM_ROWS)
ROUND = Projection.expand(b"s" * 32, num_rows=NUM_ROWS, row_length=ROW_LENGTH)
R = ROUND.signs
PROJECTION = SharedProjection.of(ROUND, num_values=NUM_VALUES)


def project(secrets):
    """w, over the integers, as the norm proof does it."""
    padded = np.zeros((NUM_ROWS + 1) * ROW_LENGTH, dtype=object)
    padded[:NUM_VALUES] = secrets.values.tolist()
    padded[NUM_ROWS * ROW_LENGTH :][:4] = secrets.squares
    flat = R.reshape(NUM_PROJECTIONS, -1).astype(object)
    return [int(a) + y for a, y in zip(flat @ padded, secrets.masks, strict=True)]


@dataclass
class Agent:
    """An agent whose proof is verified: w and s_z are what it committed to."""

    name: object
    num_parties: int = 3

    def __post_init__(self):
        self.secrets = make_secrets(self.name, NUM_VALUES, NUM_ROWS)
        *bound, mask_blinding = self.secrets.blindings
        e = 1 + SeededEntropy(self.name)(1)[0]
        self.challenges = [pow(e, k, SCALAR_ORDER) for k in range(1, len(bound) + 1)]
        self.projections = project(self.secrets)
        self.blinding = (
            mask_blinding
            + sum(c * s for c, s in zip(self.challenges, bound, strict=True))
        ) % SCALAR_ORDER
        self.rows = commit_rows(
            self.secrets.values,
            self.secrets.blindings[:NUM_ROWS],
            row_length=ROW_LENGTH,
        )
        self.deal(self.secrets)

    def deal(self, secrets):
        dealt = split_update(secrets, self.num_parties, SeededEntropy(self.name))
        self.commitments = [share.commitment for share in dealt]
        self.shares = [
            parse_share(share.plaintext, shape=SHAPE, commitment=share.commitment)
            for share in dealt
        ]
        self.links = [
            compute_links([share], [self.challenges], PROJECTION)[0]
            for share in self.shares
        ]

    def verify(self):
        verify_link(self.links, projections=self.projections, blinding=self.blinding)


AGENTS = [Agent(name) for name in range(4)]
WEIGHTS = [3, 1, 1000, 77]


def sum_party(party, agents=AGENTS, weights=WEIGHTS):
    shares = (
        (agent.shares[party], v) for agent, v in zip(agents, weights, strict=True)
    )
    return compute_party_sum(shares, shape=SHAPE, projection=PROJECTION)


def verify_sum(party, party_sum, agents=AGENTS, weights=WEIGHTS):
    verify_party_sum(
        party_sum,
        commitments=[agent.commitments[party] for agent in agents],
        links=[agent.links[party] for agent in agents],
        weights=weights,
        projection=PROJECTION,
    )


def open_sums(party_sums, agents=AGENTS, weights=WEIGHTS):
    rows = combine_rows([agent.rows for agent in agents], weights)
    return open_aggregate(party_sums, rows, row_length=ROW_LENGTH)


def expected_sum(agents=AGENTS, weights=WEIGHTS):
    return sum(
        agent.secrets.values.astype(object) * v
        for agent, v in zip(agents, weights, strict=True)
    ).tolist()


def test_an_honest_round():
    party_sums = [sum_party(party) for party in range(3)]
    for agent in AGENTS:
        agent.verify()
    for party, party_sum in enumerate(party_sums):
        verify_sum(party, party_sum)
    assert open_sums(party_sums).tolist() == expected_sum()
    assert open_sums(party_sums[::-1]).dtype == np.int64


def test_links_are_the_same_in_any_batch():
    alone = [agent.links[1] for agent in AGENTS]
    together = compute_links(
        [agent.shares[1] for agent in AGENTS],
        [agent.challenges for agent in AGENTS],
        PROJECTION,
    )
    for one, other in zip(alone, together, strict=True):
        assert one.projections.tolist() == other.projections.tolist()
        assert one.blinding == other.blinding


def test_links_need_a_challenge_for_each_blinding():
    agent = AGENTS[0]
    with pytest.raises(ValueError, match="zip"):
        compute_links([agent.shares[0]], [agent.challenges[:-1]], PROJECTION)
    with pytest.raises(ValueError, match="zip"):
        compute_links([agent.shares[0]], [], PROJECTION)


@pytest.mark.parametrize("num_values", [1, 300, 512])
def test_the_real_proof_links(num_values):
    values = np.arange(num_values) - 100
    state = commit_update(
        values,
        context=b"context",
        squared_bound=10**9,
        entropy=SeededEntropy("commit"),
        row_length=ROW_LENGTH,
    )
    statement = state.statement
    shape = ShareShape(num_values, statement.num_rows)
    dealt = split_update(state, 2, SeededEntropy("split"))
    projection = Projection.expand(
        b"r" * 32, num_rows=statement.num_rows, row_length=ROW_LENGTH
    )
    proof = prove_norm(state, projection)
    verify_norm_proof(statement, proof, projection)
    challenges = compute_blinding_challenges(statement, proof, projection.seed)
    shared = SharedProjection.of(projection, num_values=num_values)
    links, party_sums = [], []
    for share in dealt:
        opened = parse_share(share.plaintext, shape=shape, commitment=share.commitment)
        links += compute_links([opened], [challenges], shared)
        party_sums.append(
            compute_party_sum([(opened, 5)], shape=shape, projection=shared)
        )
        verify_party_sum(
            party_sums[-1],
            commitments=[share.commitment],
            links=links[-1:],
            weights=[5],
            projection=shared,
        )
    verify_link(
        links,
        projections=proof.projection_values,
        blinding=parse_scalar(proof.z_blinding),
    )
    rows = combine_rows([statement.rows], [5])
    total = open_aggregate(party_sums, rows, row_length=ROW_LENGTH)
    assert total.tolist() == (5 * values).tolist()


# Inconsistent agents


@pytest.mark.parametrize("change", [1, -1, 2**32, 2**63])
@pytest.mark.parametrize("index", [0, 255, 256, NUM_VALUES - 1])
def test_one_coordinate_that_differs(index, change):
    agent = Agent("liar")
    values = agent.secrets.values.astype(object)
    values[index] = (int(values[index]) + change + 2**63) % 2**64 - 2**63
    agent.deal(replace(agent.secrets, values=values.astype(np.int64)))
    # Under half of the projections, or 2^63 under half as well: never under none.
    with pytest.raises(SharesDifferError, match=r"\d+ of 128 projections") as caught:
        agent.verify()
    assert 30 < int(str(caught.value).split()[0]) < 98


@pytest.mark.parametrize("index", range(4))
def test_one_square_that_differs(index):
    agent = Agent("liar")
    squares = list(agent.secrets.squares)
    squares[index] += 1
    agent.deal(replace(agent.secrets, squares=squares))
    with pytest.raises(SharesDifferError, match="projections"):
        agent.verify()


@pytest.mark.parametrize("index", [0, 127])
def test_one_mask_that_differs(index):
    agent = Agent("liar")
    masks = list(agent.secrets.masks)
    masks[index] += 1
    agent.deal(replace(agent.secrets, masks=masks))
    with pytest.raises(SharesDifferError, match="1 of 128 projections"):
        agent.verify()


@pytest.mark.parametrize("index", range(NUM_ROWS + 3))
def test_one_blinding_that_differs(index):
    agent = Agent("liar")
    blindings = list(agent.secrets.blindings)
    blindings[index] = (blindings[index] + 1) % SCALAR_ORDER
    agent.deal(replace(agent.secrets, blindings=blindings))
    with pytest.raises(SharesDifferError, match="blindings"):
        agent.verify()


def test_a_share_for_another_party():
    agent = Agent("liar")
    agent.links[1] = agent.links[0]
    with pytest.raises(SharesDifferError):
        agent.verify()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_missing_link(count):
    agent = AGENTS[0]
    with pytest.raises(SharesDifferError):
        verify_link(
            agent.links[:count],
            projections=agent.projections,
            blinding=agent.blinding,
        )


# Cheating parties


def off_by_one(array, index):
    changed = array.copy()
    changed[index] += np.uint64(1)
    return changed


@pytest.mark.parametrize("party", range(3))
@pytest.mark.parametrize("index", [0, 127])
def test_a_lie_in_a_projection_is_found(party, index):
    agent = Agent("honest")
    link = agent.links[party]
    projections = off_by_one(link.projections, index)
    agent.links[party] = replace(link, projections=projections)
    with pytest.raises(SharesDifferError, match="1 of 128"):
        agent.verify()


def test_a_lie_in_a_linked_blinding_is_found():
    agent = Agent("honest")
    link = agent.links[2]
    agent.links[2] = replace(link, blinding=(link.blinding + 1) % SCALAR_ORDER)
    with pytest.raises(SharesDifferError, match="blindings"):
        agent.verify()


@pytest.mark.parametrize("party", range(3))
@pytest.mark.parametrize("index", [0, 256, NUM_VALUES - 1])
def test_a_wrong_value_names_its_party(party, index):
    honest = sum_party(party)
    lie = replace(honest, values=off_by_one(honest.values, index))
    with pytest.raises(WrongPartialError, match="WRONG_PROJECTION") as caught:
        verify_sum(party, lie)
    assert caught.value.reason is PartialRefusal.WRONG_PROJECTION
    assert str(caught.value) == f"WRONG_PROJECTION: {caught.value.detail}"


def test_a_wrong_remainder_names_its_party():
    honest = sum_party(0)
    lie = replace(honest, remainder=off_by_one(honest.remainder, 64))
    with pytest.raises(WrongPartialError, match="WRONG_PROJECTION: 1 of 128"):
        verify_sum(0, lie)


@pytest.mark.parametrize("row", range(NUM_ROWS))
def test_a_wrong_blinding_names_its_party(row):
    honest = sum_party(1)
    blindings = list(honest.row_blindings)
    for wrong in ((blindings[row] + 1) % SCALAR_ORDER, 0):
        blindings[row] = wrong
        with pytest.raises(WrongPartialError, match="WRONG_BLINDINGS"):
            verify_sum(1, replace(honest, row_blindings=tuple(blindings)))


@pytest.mark.parametrize("change", [lambda t: (t + 1) % SCALAR_ORDER, lambda _: 0])
def test_a_wrong_opening_names_its_party(change):
    honest = sum_party(1)
    with pytest.raises(WrongPartialError, match="WRONG_BLINDINGS"):
        verify_sum(1, replace(honest, opening=change(honest.opening)))


@pytest.mark.parametrize(
    ("agents", "weights"),
    [
        (AGENTS[:3], WEIGHTS[:3]),
        (AGENTS, [4, 1, 1000, 77]),
        ([AGENTS[0], *AGENTS[:3]], WEIGHTS),
        (AGENTS[::-1], WEIGHTS),
    ],
)
def test_a_sum_over_another_set_or_other_weights_names_its_party(agents, weights):
    with pytest.raises(WrongPartialError):
        verify_sum(0, sum_party(0, agents, weights))


def test_the_sum_of_another_party_does_not_pass():
    with pytest.raises(WrongPartialError):
        verify_sum(0, sum_party(1))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {"values": s.values[:-1]},
        lambda s: {"values": np.append(s.values, np.uint64(0))},
        lambda s: {"values": s.values.reshape(1, -1)},
        lambda s: {"remainder": s.remainder[:-1]},
        lambda s: {"row_blindings": s.row_blindings[:-1]},
        lambda s: {"row_blindings": (*s.row_blindings, 0)},
        lambda s: {"row_blindings": (s.row_blindings[0], -1)},
        lambda s: {"row_blindings": (s.row_blindings[0] + SCALAR_ORDER, 0)},
        lambda s: {"row_blindings": (SCALAR_ORDER, 0)},
        lambda s: {"opening": s.opening + SCALAR_ORDER},
        lambda s: {"opening": s.opening - SCALAR_ORDER},
    ],
)
def test_a_sum_of_another_shape(change):
    honest = sum_party(0)
    with pytest.raises(WrongPartialError, match="WRONG_SHAPE"):
        verify_sum(0, replace(honest, **change(honest)))


def find_kernel_vector():
    """A vector of 1, 0, -1 whose projections are all zero, by brute elimination."""
    matrix = [[int(v) for v in row] for row in PROJECTION.values[:, :NUM_VALUES]]
    modulus = 2**64
    pivots = {}
    for row in range(NUM_PROJECTIONS):
        for column, above in pivots.items():
            factor = matrix[row][column]
            if factor:
                pivot_row = matrix[above]
                matrix[row] = [
                    (a - factor * b) % modulus
                    for a, b in zip(matrix[row], pivot_row, strict=True)
                ]
        column = next(c for c, v in enumerate(matrix[row]) if v % 2)
        inverse = pow(matrix[row][column], -1, modulus)
        matrix[row] = [v * inverse % modulus for v in matrix[row]]
        for above in pivots.values():
            factor = matrix[above][column]
            if factor:
                matrix[above] = [
                    (a - factor * b) % modulus
                    for a, b in zip(matrix[above], matrix[row], strict=True)
                ]
        pivots[column] = row
    free = next(c for c in range(NUM_VALUES) if c not in pivots)
    vector = [0] * NUM_VALUES
    vector[free] = 1
    for column, row in pivots.items():
        vector[column] = -matrix[row][free] % modulus
    return np.array(vector, dtype=np.uint64)


@pytest.mark.parametrize("lie_in", ["kernel", "remainder"])
def test_a_lie_that_heeds_the_projection_opens_nothing(lie_in):
    # The limit that the module states: nobody is named, and nothing false accepted.
    party_sums = [sum_party(party) for party in range(3)]
    honest = party_sums[2]
    if lie_in == "kernel":
        party_sums[2] = replace(honest, values=honest.values + find_kernel_vector())
    else:
        column = PROJECTION.values[:, 0].astype(np.int64).view(np.uint64)
        party_sums[2] = replace(
            honest,
            values=off_by_one(honest.values, 0),
            remainder=honest.remainder - column,
        )
    for party, party_sum in enumerate(party_sums):
        verify_sum(party, party_sum)
    assert party_sums[2].values.tolist() != honest.values.tolist()
    with pytest.raises(WrongSumError, match="don't open"):
        open_sums(party_sums)


def test_a_missing_party_opens_nothing():
    with pytest.raises(WrongSumError):
        open_sums([sum_party(0), sum_party(1)])


def test_commitments_of_another_set_are_not_opened():
    party_sums = [sum_party(party) for party in range(3)]
    with pytest.raises(WrongSumError):
        open_sums(party_sums, AGENTS[:3], WEIGHTS[:3])


# Sums


@pytest.mark.parametrize("weights", [[0, 1], [1, -1], [MAX_TOTAL_EXAMPLES, 1]])
def test_weights_out_of_range(weights):
    with pytest.raises(ValueError, match="weights"):
        sum_party(0, AGENTS[:2], weights)


def test_the_largest_weights_and_values():
    agent = Agent("large")
    values = np.full(NUM_VALUES, -(2**19) + 1)
    agent.secrets = replace(agent.secrets, values=values)
    agent.rows = commit_rows(
        values, agent.secrets.blindings[:NUM_ROWS], row_length=ROW_LENGTH
    )
    agent.deal(agent.secrets)
    weights = [MAX_TOTAL_EXAMPLES]
    party_sums = [sum_party(party, [agent], weights) for party in range(3)]
    for party, party_sum in enumerate(party_sums):
        verify_sum(party, party_sum, [agent], weights)
    total = open_sums(party_sums, [agent], weights)
    assert set(total.tolist()) == {-(2**19 - 1) * (2**31 - 1)}


def test_an_empty_sum_is_zero():
    empty = compute_party_sum([], shape=SHAPE, projection=PROJECTION)
    assert not empty.values.any()
    assert not empty.remainder.any()
    assert (empty.row_blindings, empty.opening) == ((0,) * NUM_ROWS, 0)


# Projections


def test_what_a_shared_projection_takes():
    assert PROJECTION.num_rows == NUM_ROWS
    assert PROJECTION.values.tolist() == (
        np.concatenate([R[:, 0, :], R[:, 1, :44]], axis=1).tolist()
    )
    assert PROJECTION.squares.tolist() == R[:, 2, :4].tolist()


@pytest.mark.parametrize("num_values", [1, 256, 513])
def test_a_projection_for_other_updates(num_values):
    with pytest.raises(ValueError, match="2 rows of 256, which do not hold"):
        SharedProjection.of(ROUND, num_values=num_values)
    for fitting in (257, 512):
        SharedProjection.of(ROUND, num_values=fitting)


@pytest.mark.parametrize("num_columns", [1, 16_384, 16_385, 40_000])
def test_projections_are_exact(num_columns):
    rng = np.random.default_rng(num_columns)
    signs = rng.integers(-1, 2, (8, num_columns)).astype(np.int8)
    signs[0] = 1
    signs[1] = -1
    full = np.full(num_columns, 2**64 - 1, dtype=np.uint64)
    alternating = full.copy()
    alternating[::2] = 2**63
    drawn = rng.integers(0, 2**64, num_columns, dtype=np.uint64)
    vectors = [full, alternating, drawn]
    with np.errstate(over="ignore"):
        wide = signs.astype(np.int64).view(np.uint64)
        exact = [(wide * vector).sum(axis=1).tolist() for vector in vectors]
    assert share_link._project(signs, vectors).tolist() == exact


def test_projections_stay_below_2_53():
    assert share_link._COLUMNS * 2**share_link._DIGIT_BITS < 2**53

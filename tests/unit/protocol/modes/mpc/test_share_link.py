"""Inconsistent agents and wrong sums are found; the latter's parties are named."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from protocol.aggregation import MAX_TOTAL_EXAMPLES
from protocol.modes.mpc.commitments import (
    SCALAR_ORDER,
    combine_rows,
    commit_rows,
    parse_scalar,
)
from protocol.modes.mpc.norm_proof import (
    compute_blinding_challenges,
    compute_challenges,
    expand_projection,
)
from protocol.modes.mpc.norm_prover import commit_update, prove_norm
from protocol.modes.mpc.projections import NUM_PROJECTIONS, Projection
from protocol.modes.mpc.share_link import (
    NUM_SUM_PROJECTIONS,
    PartialRefusal,
    SharesDifferError,
    SumMasks,
    WrongPartialError,
    WrongSumError,
    compute_link,
    compute_party_sum,
    expand_sum_projection,
    open_aggregate,
    verify_link,
    verify_party_sum,
)
from protocol.modes.mpc.shares import ShareShape, parse_share, split_update
from tests.proving import verify_norm_proof
from tests.vectors.shares.generate import SeededEntropy, make_secrets

ROW_LENGTH = 512
NUM_VALUES = 600
NUM_ROWS = 2
SHAPE = ShareShape(NUM_VALUES, NUM_ROWS)
SUM_SEED = b"s" * 32
SUM_PROJECTION = expand_sum_projection(
    SUM_SEED, num_rows=NUM_ROWS, row_length=ROW_LENGTH
)
MASKS = [SumMasks(bytes([party]) * 32, SUM_SEED) for party in range(5)]


def spell_out(projection, num_values=NUM_VALUES):
    """Return the rows of a projection, as long as the values they are applied to."""
    rows = np.einsum("ti,tj->tij", projection.of_rows, projection.of_columns)
    return rows.reshape(len(rows), -1)[:, :num_values]


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
        self.seed = SeededEntropy(f"seed {self.name}")(32)
        self.projection = Projection.expand(
            self.seed,
            num_projections=NUM_PROJECTIONS,
            num_rows=NUM_ROWS + 1,
            row_length=ROW_LENGTH,
        )
        self.projections = self.project(self.secrets)
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

    def project(self, secrets):
        """w, over the integers, as the norm proof does it."""
        padded = np.zeros((NUM_ROWS + 1) * ROW_LENGTH, dtype=object)
        padded[:NUM_VALUES] = secrets.values.tolist()
        padded[NUM_ROWS * ROW_LENGTH :][:4] = secrets.squares
        rows = spell_out(self.projection, len(padded)).astype(object)
        return [int(a) + y for a, y in zip(rows @ padded, secrets.masks, strict=True)]

    def deal(self, secrets):
        dealt = split_update(secrets, self.num_parties, SeededEntropy(self.name))
        self.commitments = [share.commitment for share in dealt]
        self.shares = [
            parse_share(share.plaintext, shape=SHAPE, commitment=share.commitment)
            for share in dealt
        ]
        self.masks = [
            MASKS[party].expand(self.seed) for party in range(self.num_parties)
        ]
        self.links = [
            compute_link(
                share,
                projection=self.projection,
                challenges=self.challenges,
                sum_projection=SUM_PROJECTION,
                masks=masks,
            )
            for share, masks in zip(self.shares, self.masks, strict=True)
        ]

    def verify(self):
        verify_link(self.links, projections=self.projections, blinding=self.blinding)


AGENTS = [Agent(name) for name in range(4)]
WEIGHTS = [3, 1, 1000, 77]


def sum_party(party, agents=AGENTS, weights=WEIGHTS):
    shares = (
        (agent.shares[party], agent.masks[party], v)
        for agent, v in zip(agents, weights, strict=True)
    )
    return compute_party_sum(shares, shape=SHAPE)


def verify_sum(party, party_sum, agents=AGENTS, weights=WEIGHTS):
    verify_party_sum(
        party_sum,
        commitments=[agent.commitments[party] for agent in agents],
        links=[agent.links[party] for agent in agents],
        weights=weights,
        shape=SHAPE,
        sum_projection=SUM_PROJECTION,
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


def test_links_and_sums_are_those_of_the_formulas():
    agent = AGENTS[0]
    for share, masks, link in zip(agent.shares, agent.masks, agent.links, strict=True):
        rows = spell_out(agent.projection, (NUM_ROWS + 1) * ROW_LENGTH).astype(object)
        of_squares = rows[:, NUM_ROWS * ROW_LENGTH :][:, :4]
        values = share.values.astype(object)
        expected = rows[:, :NUM_VALUES] @ values
        expected += of_squares @ share.squares.astype(object)
        expected += share.masks.astype(object)
        assert link.projections.tolist() == [value % 2**64 for value in expected]
        summed = spell_out(SUM_PROJECTION).astype(object) @ values
        summed += masks.astype(object)
        assert link.sum_projections.tolist() == [value % 2**64 for value in summed]
        assert len(link.sum_projections) == NUM_SUM_PROJECTIONS


def test_a_link_needs_a_challenge_for_each_blinding():
    agent = AGENTS[0]
    with pytest.raises(ValueError, match="zip"):
        compute_link(
            agent.shares[0],
            projection=agent.projection,
            challenges=agent.challenges[:-1],
            sum_projection=SUM_PROJECTION,
            masks=agent.masks[0],
        )


@pytest.mark.parametrize("num_values", [1, 600, 1024])
def test_the_real_proof_links(num_values):
    values = np.arange(num_values) - 100
    state = commit_update(
        values,
        squared_bound=10**9,
        entropy=SeededEntropy("commit"),
        row_length=ROW_LENGTH,
    )
    shape = ShareShape(num_values, state.statement.num_rows)
    dealt = split_update(state, 2, SeededEntropy("split"))
    state = state.bind(b"context")
    statement, proof = state.statement, prove_norm(state)
    verify_norm_proof(statement, proof)
    challenges = compute_challenges(statement, proof)
    sum_projection = expand_sum_projection(
        SUM_SEED, num_rows=statement.num_rows, row_length=ROW_LENGTH
    )
    links, party_sums = [], []
    for share, own in zip(dealt, MASKS, strict=False):
        opened = parse_share(share.plaintext, shape=shape, commitment=share.commitment)
        masks = own.expand(challenges.seed)
        links.append(
            compute_link(
                opened,
                projection=expand_projection(statement, challenges.seed),
                challenges=compute_blinding_challenges(statement, challenges),
                sum_projection=sum_projection,
                masks=masks,
            )
        )
        party_sums.append(compute_party_sum([(opened, masks, 5)], shape=shape))
        verify_party_sum(
            party_sums[-1],
            commitments=[share.commitment],
            links=links[-1:],
            weights=[5],
            shape=shape,
            sum_projection=sum_projection,
        )
    verify_link(
        links,
        projections=proof.projection_values,
        blinding=parse_scalar(proof.z_blinding),
    )
    rows = combine_rows([statement.rows], [5])
    total = open_aggregate(party_sums, rows, row_length=ROW_LENGTH)
    assert total.tolist() == (5 * values).tolist()


# A party's own masks


def test_masks_are_others_for_another_key_sum_or_agent():
    known = [
        SumMasks(key, sum_seed).expand(seed).tolist()
        for key in (b"k" * 32, b"l" * 32)
        for sum_seed in (b"s" * 32, b"t" * 32)
        for seed in (b"a" * 32, b"b" * 32, b"s" * 32, b"t" * 32)
    ]
    words = [word for masks in known for word in masks]
    assert len(set(words)) == len(words) == 16 * NUM_SUM_PROJECTIONS


def test_masks_are_the_same_again():
    masks = SumMasks(b"k" * 32, SUM_SEED)
    assert masks.expand(b"a" * 32).tolist() == masks.expand(b"a" * 32).tolist()
    assert "kkk" not in repr(masks)


def test_two_links_under_one_projection_of_the_sum_show_no_difference():
    # An agent that spoke twice: the same share, another R_i, so other masks.
    agent = AGENTS[0]
    seeds = [agent.seed, b"again".ljust(32)]
    one, other = (
        compute_link(
            agent.shares[0],
            projection=agent.projection,
            challenges=agent.challenges,
            sum_projection=SUM_PROJECTION,
            masks=MASKS[0].expand(seed),
        ).sum_projections
        for seed in seeds
    )
    assert not (one == other).any()


# Inconsistent agents


@pytest.mark.parametrize("change", [1, -1, 2**32, 2**63])
@pytest.mark.parametrize("index", [0, 511, 512, NUM_VALUES - 1])
def test_one_coordinate_that_differs(index, change):
    agent = Agent("liar")
    values = agent.secrets.values.astype(object)
    values[index] = (int(values[index]) + change + 2**63) % 2**64 - 2**63
    agent.deal(replace(agent.secrets, values=values.astype(np.int64)))
    # A quarter of the projections see it, of 2^63 as well.
    with pytest.raises(SharesDifferError, match=r"\d+ of 309 projections") as caught:
        agent.verify()
    assert 40 < int(str(caught.value).split()[0]) < 115


@pytest.mark.parametrize("index", range(4))
def test_one_square_that_differs(index):
    agent = Agent("liar")
    squares = list(agent.secrets.squares)
    squares[index] += 1
    agent.deal(replace(agent.secrets, squares=squares))
    with pytest.raises(SharesDifferError, match="projections"):
        agent.verify()


@pytest.mark.parametrize("index", [0, NUM_PROJECTIONS - 1])
def test_one_mask_that_differs(index):
    agent = Agent("liar")
    masks = list(agent.secrets.masks)
    masks[index] += 1
    agent.deal(replace(agent.secrets, masks=masks))
    with pytest.raises(SharesDifferError, match="1 of 309 projections"):
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


# Planted mutants: other rows


def test_differences_of_half_the_modulus_are_found_whatever_the_masks_are():
    # An even number of them, and an offset of the masks that fits the most rows.
    agent = Agent("liar")
    values = agent.secrets.values.astype(object)
    for index in (0, 1, 512, 513):
        values[index] = (int(values[index]) + 2**64) % 2**64 - 2**63
    masks = [mask + 2**63 for mask in agent.secrets.masks]
    for offset in (agent.secrets.masks, masks):
        agent.deal(replace(agent.secrets, values=values.astype(np.int64), masks=offset))
        with pytest.raises(SharesDifferError, match="projections"):
            agent.verify()


def test_rows_of_signs_would_miss_a_difference_of_half_the_modulus(monkeypatch):
    expand = Projection.expand.__func__

    def expand_signs(cls, seed, **shape):
        bits = expand(cls, seed, **shape)
        both = (b.astype(np.uint64) for b in (bits.of_rows, bits.of_columns))
        return cls(*(1 - 2 * b for b in both))  # modulo 2^64

    def multiply(self, values):
        return (spell_out(self, len(values)) * values).sum(axis=1, dtype=np.uint64)

    monkeypatch.setattr(Projection, "expand", classmethod(expand_signs))
    monkeypatch.setattr(Projection, "multiply_words", multiply)
    agent = Agent("liar")
    values = agent.secrets.values.astype(object)
    values[0] = (int(values[0]) + 2**64) % 2**64 - 2**63
    # In every row it is 2^63, so an offset known beforehand makes up for it.
    masks = [mask + 2**63 for mask in agent.secrets.masks]
    agent.deal(replace(agent.secrets, values=values.astype(np.int64), masks=masks))
    agent.verify()


# Cheating parties


def off_by_one(array, index):
    changed = array.copy()
    changed[index] += np.uint64(1)
    return changed


@pytest.mark.parametrize("party", range(3))
@pytest.mark.parametrize("index", [0, NUM_PROJECTIONS - 1])
def test_a_lie_in_a_projection_is_found(party, index):
    agent = Agent("honest")
    link = agent.links[party]
    projections = off_by_one(link.projections, index)
    agent.links[party] = replace(link, projections=projections)
    with pytest.raises(SharesDifferError, match="1 of 309"):
        agent.verify()


def test_a_lie_in_a_linked_blinding_is_found():
    agent = Agent("honest")
    link = agent.links[2]
    agent.links[2] = replace(link, blinding=(link.blinding + 1) % SCALAR_ORDER)
    with pytest.raises(SharesDifferError, match="blindings"):
        agent.verify()


@pytest.mark.parametrize("party", range(3))
@pytest.mark.parametrize("index", [0, 512, NUM_VALUES - 1])
def test_a_wrong_value_names_its_party(party, index):
    honest = sum_party(party)
    lie = replace(honest, values=off_by_one(honest.values, index))
    with pytest.raises(WrongPartialError, match="WRONG_PROJECTION") as caught:
        verify_sum(party, lie)
    assert caught.value.reason is PartialRefusal.WRONG_PROJECTION
    assert str(caught.value) == f"WRONG_PROJECTION: {caught.value.detail}"


def test_a_lie_in_a_sum_projection_names_its_party_in_the_end():
    agent = Agent("honest")
    link = agent.links[0]
    lie = off_by_one(link.sum_projections, 7)
    agent.links[0] = replace(link, sum_projections=lie)
    agent.verify()
    agents, weights = [agent, AGENTS[1]], [2, 1]
    for party in range(3):
        part = sum_party(party, agents, weights)
        if party == 0:
            with pytest.raises(WrongPartialError, match="WRONG_PROJECTION: 1 of 78"):
                verify_sum(party, part, agents, weights)
        else:
            verify_sum(party, part, agents, weights)


def test_wrong_masks_name_their_party():
    honest = sum_party(0)
    lie = replace(honest, masks=off_by_one(honest.masks, 64))
    with pytest.raises(WrongPartialError, match="WRONG_PROJECTION: 1 of 78"):
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
        lambda s: {"masks": s.masks[:-1]},
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
    matrix = [[int(v) for v in row] for row in spell_out(SUM_PROJECTION)]
    modulus = 2**64
    pivots = {}
    for row in range(NUM_SUM_PROJECTIONS):
        for column, above in pivots.items():
            factor = matrix[row][column]
            if factor:
                pivot_row = matrix[above]
                matrix[row] = [
                    (a - factor * b) % modulus
                    for a, b in zip(matrix[row], pivot_row, strict=True)
                ]
        if not any(matrix[row]):  # a row that is the product of no bits
            continue
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


@pytest.mark.parametrize("lie_in", ["kernel", "masks"])
def test_a_lie_that_heeds_the_projection_opens_nothing(lie_in):
    # The limit that the module states: nobody is named, and nothing false accepted.
    party_sums = [sum_party(party) for party in range(3)]
    honest = party_sums[2]
    if lie_in == "kernel":
        party_sums[2] = replace(honest, values=honest.values + find_kernel_vector())
    else:
        column = spell_out(SUM_PROJECTION)[:, 0].astype(np.uint64)
        party_sums[2] = replace(
            honest, values=off_by_one(honest.values, 0), masks=honest.masks - column
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
    empty = compute_party_sum([], shape=SHAPE)
    assert not empty.values.any()
    assert not empty.masks.any()
    assert (empty.row_blindings, empty.opening) == ((0,) * NUM_ROWS, 0)

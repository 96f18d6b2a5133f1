"""The opened sum is the integer sum, whoever is in it and in whatever order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.modes.mpc.commitments import combine_rows
from protocol.modes.mpc.share_link import (
    compute_party_sum,
    open_aggregate,
    verify_link,
    verify_party_sum,
)
from tests.unit.protocol.modes.mpc.test_share_link import (
    ROW_LENGTH,
    SHAPE,
    SUM_PROJECTION,
    Agent,
    expected_sum,
)

NUM_AGENTS = 5
AGENTS = {
    num_parties: [
        Agent(f"{name}/{num_parties}", num_parties) for name in range(NUM_AGENTS)
    ]
    for num_parties in range(2, 6)
}


@settings(max_examples=40)
@given(
    num_parties=st.integers(2, 5),
    cohort=st.lists(st.integers(0, NUM_AGENTS - 1), min_size=1, unique=True),
    weights=st.lists(st.integers(1, 2**28), min_size=NUM_AGENTS, max_size=NUM_AGENTS),
    data=st.data(),
)
def test_the_opened_sum_is_the_integer_sum(num_parties, cohort, weights, data):
    agents = [AGENTS[num_parties][index] for index in cohort]
    weights = weights[: len(agents)]
    party_sums = []
    for party in range(num_parties):
        order = data.draw(st.permutations(range(len(agents))))
        party_sum = compute_party_sum(
            (
                (agents[i].shares[party], agents[i].masks[party], weights[i])
                for i in order
            ),
            shape=SHAPE,
        )
        verify_party_sum(
            party_sum,
            commitments=[agent.commitments[party] for agent in agents],
            links=[agent.links[party] for agent in agents],
            weights=weights,
            shape=SHAPE,
            sum_projection=SUM_PROJECTION,
        )
        party_sums.append(party_sum)
    for agent in agents:
        verify_link(
            data.draw(st.permutations(agent.links)),
            projections=agent.projections,
            blinding=agent.blinding,
        )
    rows = combine_rows([agent.rows for agent in agents], weights)
    opened = open_aggregate(
        data.draw(st.permutations(party_sums)), rows, row_length=ROW_LENGTH
    )
    assert opened.tolist() == expected_sum(agents, weights)

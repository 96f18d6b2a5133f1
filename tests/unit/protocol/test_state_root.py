"""One hash over everything that a log leads to: what counts, and what does not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.attestations import NodeSet
from ledger.equivocation import Contradiction, Offence
from protocol.admission import AdmissionState, Agent
from protocol.contributions import Contribution
from protocol.deciders import DECIDERS
from protocol.envelope import SIGNATURE_HEADER
from protocol.persistent import PersistentMap, PersistentSet
from protocol.registry import RegistryState
from protocol.replay import ReplayState, replay_block
from protocol.rewards import RewardsState, UnpaidRound
from protocol.round_state import OpenRound, PendingUpdate, RoundsState
from protocol.state_root import LEFT_OUT, StateHasher, encode
from schemas import events as e
from tests.builders import LogBuilder, build_log, make_nodes, unframe
from tests.simulation.federation import CONFIG

STARTED = e.RoundStarted(
    federation_id="clinics",
    round=3,
    cause=bytes(32),
    cause_leaf_index=40,
    output_index=0,
    num_drawn=2,
    cohort_seed=b"\x01" * 32,
    last_ticket=b"\x0f" * 32,
    base_version=2,
    base_model=CONFIG.initial_model,
    task=CONFIG.task,
    num_parameters=4,
    fractional_bits=16,
    deadline_ms=1_700_000_060_000,
)
NODES = NodeSet(0, b"\x02" * 32, make_nodes(["node0", "node1"]))
STATE = ReplayState(
    admission=AdmissionState(
        federation_id="clinics",
        principals={"OPERATOR": b"\x03" * 32, "SEQUENCER": b"\x04" * 32},
        agents=PersistentMap(
            {"ana": Agent(b"\x05" * 32), "bea": Agent(b"\x06" * 32, revoked=True)}
        ),
        offsets={"moot.control/0": 7, "moot.updates/0": 3},
        num_leaves=42,
        last_facts={"moot.rounds": (40, 0)},
        recent_ids=(frozenset({b"\x07" * 32}),),
        node_sets=(NODES,),
        finalised_size=30,
        proven=frozenset({Contradiction(b"\x08" * 32, Offence.TWO_BLOCKS, 0, 1, 12)}),
    ),
    states={
        "rounds": RoundsState(
            config=CONFIG,
            agents=PersistentSet({"ana", "bea"}),
            last_round=3,
            last_requested_at_ms=1_700_000_000_000,
            version=2,
            model=CONFIG.initial_model,
            current=OpenRound(
                started=STARTED,
                cohort=frozenset({"ana", "bea", "cem"}),
                owing=PersistentSet({"cem"}),
                pending_of=PersistentMap({"ana": 41}),
                pending=PersistentMap(
                    {
                        41: PendingUpdate(
                            agent_id="ana",
                            update_sha256=b"\x09" * 32,
                            num_examples=5,
                            leaf_hash=b"\x0e" * 32,
                        )
                    }
                ),
                contributions=PersistentMap(
                    {
                        "bea": Contribution(
                            agent_id="bea", update_sha256=b"\x0a" * 32, num_examples=6
                        )
                    }
                ),
            ),
            draw_size=30,
            draw_entropy=b"\x0b" * 32,
            drawn_size=30,
        ),
        "registry": RegistryState(),
        "rewards": RewardsState(
            sequencer_key=b"\x04" * 32,
            node_names={b"\x0c" * 32: "node0"},
            best_accuracy_micros=900_000,
            drawn_round=3,
            silent=PersistentSet({"ana"}),
            unpaid={2: UnpaidRound(is_published=True, gain_micros=4)},
            balances=PersistentMap({"ana": -50, "bea": 120}),
        ),
    },
)
ROOT = "52a422d5f7c14156b6dcfa4e63711c99335338fa8dbd8c0a6638f65ebc7c4021"


def parts_of(state: ReplayState) -> dict[str, Any]:
    return {"admission": state.admission, **state.states}


def with_part(state: ReplayState, name: str, part: Any) -> ReplayState:
    if name == "admission":
        return replace(state, admission=part)
    return replace(state, states={**state.states, name: part})


def compute_root(state: ReplayState) -> str:
    return StateHasher().compute_root(state).hex()


# Vectors


def test_a_state_has_the_root_that_it_always_had() -> None:
    """When this fails, nodes of two versions cannot certify a block together: it is a
    new version of the state's encoding.
    """
    assert compute_root(STATE) == ROOT


def test_the_root_is_what_the_documentation_says() -> None:
    known = {}
    for part, value in parts_of(STATE).items():
        for own in fields(value):
            item = getattr(value, own.name)
            default = getattr(type(value)(), own.name)
            if item != default and (part, own.name) != ("admission", "recent_ids"):
                name = encode(f"{part}.{own.name}")
                known[name] = hashlib.sha256(encode(item)).digest()
    content = b"".join(name + known[name] for name in sorted(known))
    digest = hashlib.sha256(b"folkmoot/state/v2\n" + content)
    assert compute_root(STATE) == digest.hexdigest()
    assert set(parts_of(STATE)) == {"admission", *DECIDERS}
    assert b"rounds.current" in content
    assert b"registry" not in content, "it knows nothing yet"


@dataclass(frozen=True)
class Pair:
    left: Any
    right: Any = None


@dataclass(frozen=True, kw_only=True)
class Other:
    begin: int = 0
    names: Mapping[str, Pair] = field(default_factory=dict)
    end: int = -1


@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        (None, b"n"),
        (False, b"f"),
        (True, b"t"),
        (0, b"i0;"),
        (-1, b"i-1;"),
        (2**70, b"i1180591620717411303424;"),
        ("", b"s0:"),
        ("é", b"s2:\xc3\xa9"),
        (Offence.TWO_TREES, b"s9:TWO_TREES"),
        (b"", b"b0:"),
        (b"\x00;", b"b2:\x00;"),
        ((), b"l0:"),
        ((1, (2,)), b"l2:i1;l1:i2;"),
        (frozenset(), b"x0:"),
        # By encoding, not by value: i10; comes before i9;.
        (frozenset({9, 10}), b"x2:i10;i9;"),
        ({}, b"m0:"),
        ({"b": 1, "a": None}, b"m2:s1:ans1:bi1;"),
        (MappingProxyType({b"k": True}), b"m1:b1:kt"),
        (Pair(1), b"d1:s4:lefti1;"),
        (Pair(None), b"d1:s4:leftn"),
        # By name, not in the order of the class.
        (Pair(1, 2), b"d2:s4:lefti1;s5:righti2;"),
        (Other(end=1), b"d1:s3:endi1;"),
        (Other(begin=1, end=2), b"d2:s3:endi2;s5:begini1;"),
        (Other(names={}, end=0), b"d1:s3:endi0;"),
        (
            Other(names={"a": Pair(1)}, end=0),
            b"d2:s3:endi0;s5:namesm1:s1:ad1:s4:lefti1;",
        ),
    ],
)
def test_every_value_has_one_encoding(value: object, encoding: bytes) -> None:
    assert encode(value) == encoding


@pytest.mark.parametrize(
    "value", [1.5, [1], {1}, bytearray(b"x"), object(), Pair, (1, 2.0), {"a": [1]}]
)
def test_what_states_are_not_made_of_is_a_bug(value: object) -> None:
    with pytest.raises(TypeError):
        encode(value)


def test_a_state_with_such_a_value_has_no_root() -> None:
    state = with_part(STATE, "rounds", replace(STATE.rounds, version=1.0))
    with pytest.raises(TypeError, match="no encoding of float"):
        StateHasher().compute_root(state)


atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(atoms, max_size=3)
        | st.dictionaries(atoms, inner, max_size=3)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=6,
)


def _typed(value: Any) -> Any:
    """Return a value that is only equal to one of the same types: True is not 1."""
    match value:
        case tuple():
            return tuple, tuple(map(_typed, value))
        case frozenset():
            return frozenset, frozenset(map(_typed, value))
        case Mapping():
            return dict, frozenset((_typed(k), _typed(v)) for k, v in value.items())
        case Pair():
            return Pair, _typed(value.left), _typed(value.right)
        case _:
            return type(value), value


@given(values, values)
def test_different_values_have_different_encodings(one: Any, other: Any) -> None:
    assert (encode(one) == encode(other)) == (_typed(one) == _typed(other))


@given(st.dictionaries(st.text("ab", max_size=3), st.integers(), max_size=6), st.data())
def test_the_order_of_a_mapping_or_a_set_is_nothing(
    items: dict[str, int], data: st.DataObject
) -> None:
    shuffled = dict(data.draw(st.permutations(sorted(items.items()))))
    assert encode(shuffled) == encode(items)
    names = data.draw(st.permutations(sorted(items)))
    assert encode(frozenset(names)) == encode(frozenset(sorted(items)))


def test_the_order_in_which_things_were_learned_is_nothing() -> None:
    state = replace(
        STATE,
        admission=replace(
            STATE.admission,
            agents=dict(reversed([*STATE.admission.agents.items()])),
            offsets=dict(reversed(STATE.admission.offsets.items())),
        ),
        states=dict(reversed(STATE.states.items())),
    )
    balances = dict(reversed([*STATE.rewards.balances.items()]))
    state = with_part(state, "rewards", replace(STATE.rewards, balances=balances))
    assert compute_root(state) == ROOT


# Everything counts


def changes_of(value: Any) -> Iterator[Any]:
    """Yield the value with one thing in it changed, for everything in it."""
    match value:
        case None:
            yield 0
        case bool():
            yield not value
        case int():
            yield value + 1
        case str():
            yield value + "x"
        case bytes():
            yield value[:-1] + bytes([value[-1] ^ 1]) if value else b"\x00"
        case tuple():
            yield (*value, None)
            for place, item in enumerate(value):
                for changed in changes_of(item):
                    yield (*value[:place], changed, *value[place + 1 :])
        case frozenset() | PersistentSet():
            yield frozenset({*value, "somebody else"})
            for item in value:
                yield frozenset({*value} - {item})
        case Mapping():
            yield {**value, "somebody else": 1}
            for key, item in value.items():
                yield {k: v for k, v in value.items() if k != key}
                for changed in changes_of(item):
                    yield {**value, key: changed}
        case _:
            assert is_dataclass(value), value
            for field in fields(value):
                for changed in changes_of(getattr(value, field.name)):
                    clone = copy(value)
                    object.__setattr__(clone, field.name, changed)
                    yield clone


def last_state(log: LogBuilder) -> ReplayState:
    state = ReplayState()
    for record in log.records:
        data, signature = unframe(record.value or b""), record.header(SIGNATURE_HEADER)
        state = replay_block(state, data, signature, unframe=unframe).state
    return state


@pytest.mark.parametrize("part", ["admission", *DECIDERS])
@pytest.mark.parametrize("which", ["by hand", "of a log"])
def test_whatever_changes_in_a_state_changes_its_root(part: str, which: str) -> None:
    state = STATE if which == "by hand" else last_state(build_log())
    hasher, before = StateHasher(), StateHasher().compute_root(state)
    value, seen = parts_of(state)[part], 0
    for own in fields(value):
        for changed in changes_of(getattr(value, own.name)):
            clone = copy(value)
            object.__setattr__(clone, own.name, changed)
            root = hasher.compute_root(with_part(state, part, clone))
            is_left_out = (part, own.name) in LEFT_OUT
            assert (root == before) == is_left_out, (own.name, changed)
            seen += 1
    assert seen >= len(fields(value))


def test_how_far_the_log_was_read_and_what_is_to_come_are_left_out() -> None:
    log = LogBuilder(send_fact=lambda fact: [])
    log.found()
    log.request_round()
    state = last_state(log)
    assert state.expected
    other = replace(state, log=ReplayState().log, expected={})
    assert compute_root(other) == compute_root(state)
    forgetful = replace(state, admission=replace(state.admission, recent_ids=()))
    assert compute_root(forgetful) == compute_root(state)


# Memory


def test_what_is_remembered_gives_what_is_computed() -> None:
    """Over a whole log, as a ledger node does; every block has its own root."""
    hasher, state, roots = StateHasher(), ReplayState(), []
    for record in build_log().records:
        data, signature = unframe(record.value or b""), record.header(SIGNATURE_HEADER)
        state = replay_block(state, data, signature, unframe=unframe).state
        roots.append(hasher.compute_root(state))
        assert roots[-1] == StateHasher().compute_root(state)
        assert roots[-1] == hasher.compute_root(state)
    assert len(set(roots)) == len(roots)


def test_a_hasher_may_go_back() -> None:
    hasher, empty = StateHasher(), ReplayState()
    roots = [hasher.compute_root(state) for state in (STATE, empty, STATE, empty)]
    assert roots[:2] == roots[2:]
    assert roots[0].hex() == ROOT
    assert len(roots[0]) == 32

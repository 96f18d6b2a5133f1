"""What a party gives, and what it remembers of it."""

import errno
import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.modes.mpc.memory import (
    SAID_FILE,
    PartyLog,
    PartyLogError,
    create_party_log,
)
from protocol.contributions import Contribution
from protocol.modes.mpc.party_memory import (
    MAX_COMPARISONS,
    Compared,
    Left,
    Linked,
    PartyRefusesError,
    RefusalCode,
    Summed,
    demand_comparable,
    demand_harmless,
    find_unlinkable,
    remember,
)
from schemas import events as e
from tests.simulation.federation import BASE

_UPDATES = tuple((f"agent{i}", bytes([i]) * 32, 10 + i) for i in range(9))
OLD, NEW = bytes([101]) * 32, bytes([102]) * 32
"""Digests of base models."""


def asked(
    *updates: int, number: int = 1, federation: str = "clinics", base: bytes = OLD
) -> Summed:
    return Summed(
        federation_id=federation,
        base_model=base,
        round=number,
        cause=bytes([number]) * 32,
        updates=tuple(_UPDATES[i] for i in updates),
    )


def anew(summed: Summed) -> Summed:
    """Return their sum in another round: other commitments and other weights."""
    return replace(
        summed,
        round=summed.round + 1,
        cause=bytes(32),
        updates=tuple(
            (agent_id, digest[:-1] + b"x", weight + 1)
            for agent_id, digest, weight in summed.updates
        ),
    )


def linked_for(summed: Summed, seed: int = 9) -> Linked:
    return Linked(
        federation_id=summed.federation_id,
        base_model=summed.base_model,
        updates=tuple(
            (a, digest, bytes([seed]) * 32) for a, digest, _ in summed.updates
        ),
    )


LINKED = Linked(
    federation_id="clinics",
    base_model=OLD,
    updates=tuple((agent_id, digest, bytes(32)) for agent_id, digest, _ in _UPDATES),
)
"""All updates, linked."""


def open_linked(directory: Path) -> PartyLog:
    """Return a memory in which all updates are linked."""
    log = PartyLog(directory)
    log.permit_links(LINKED)
    return log


def refusal(call):
    with pytest.raises(PartyRefusesError) as caught:
        call()
    assert caught.value.code in str(caught.value)
    return caught.value.code


@pytest.fixture
def directory(tmp_path):
    create_party_log(tmp_path / "p0")
    return tmp_path / "p0"


# The rules


def test_a_sum_is_over_the_sealed_set():
    sealed = e.RoundSealed(
        federation_id="clinics",
        round=7,
        cause=b"c" * 32,
        cause_leaf_index=3,
        output_index=1,
        num_contributions=2,
        contributions_sha256=bytes(32),
        num_examples=9,
        base_model=BASE,
        fractional_bits=16,
        num_parameters=4,
    )
    contributions = (
        Contribution(agent_id="ana", update_sha256=b"a" * 32, num_examples=4),
        Contribution(agent_id="bea", update_sha256=b"b" * 32, num_examples=5),
    )
    assert Summed.of(sealed, contributions) == Summed(
        federation_id="clinics",
        round=7,
        base_model=BASE.sha256,
        cause=b"c" * 32,
        updates=(("ana", b"a" * 32, 4), ("bea", b"b" * 32, 5)),
    )


@pytest.mark.parametrize("min_cohort", [0, 1, 2, 3])
def test_a_small_cohort_is_refused(min_cohort):
    smallest = max(2, min_cohort)
    few = asked(*range(smallest - 1))
    code = refusal(lambda: demand_harmless(few, [LINKED], min_cohort=min_cohort))
    assert code is RefusalCode.COHORT_TOO_SMALL
    demand_harmless(asked(*range(smallest)), [LINKED], min_cohort=min_cohort)


def test_nobody_is_twice_in_one_sum():
    agent, digest, weight = _UPDATES[0]
    for more in (
        _UPDATES[0],
        (agent, _UPDATES[2][1], weight),
        (_UPDATES[2][0], digest, weight),
    ):
        twice = replace(asked(0, 1), updates=(*asked(0, 1).updates, more))
        code = refusal(lambda twice=twice: demand_harmless(twice, [], min_cohort=2))
        assert code is RefusalCode.AGENT_SUMMED_BEFORE
        code = refusal(lambda twice=twice: demand_harmless(twice, [], min_cohort=3))
        assert code is RefusalCode.COHORT_TOO_SMALL


def test_the_same_sum_may_be_asked_for_again():
    demand_harmless(asked(0, 1, 2), [LINKED, asked(0, 1, 2)], min_cohort=2)


@pytest.mark.parametrize("other", [(0, 1), (0, 1, 2, 3), (2, 3, 4)])
def test_an_agent_is_in_one_sum_over_a_base_model(other):
    """In the same round or another one, by the same commitments or others."""
    given = [LINKED, asked(0, 1, 2)]
    for again in (asked(*other), asked(*other, number=2), anew(asked(*other))):
        known = [*given, linked_for(again)]
        code = refusal(lambda a=again, k=known: demand_harmless(a, k, min_cohort=2))
        assert code is RefusalCode.AGENT_SUMMED_BEFORE
    demand_harmless(asked(3, 4, number=2), given, min_cohort=2)


def test_the_same_agents_with_other_weights_are_another_sum():
    first = asked(0, 1)
    (agent_id, digest, _), second = first.updates
    other = replace(first, updates=((agent_id, digest, 1), second))
    code = refusal(lambda: demand_harmless(other, [LINKED, first], min_cohort=2))
    assert code is RefusalCode.AGENT_SUMMED_BEFORE


def test_another_founding_of_a_name_goes_on_with_the_same_memory():
    """Its agents have the same data, and its first base model may be the same too."""
    again = replace(asked(1, 2, 3), cause=b"x" * 32)
    given = [LINKED, asked(0, 1, 2)]
    code = refusal(lambda: demand_harmless(again, given, min_cohort=2))
    assert code is RefusalCode.AGENT_SUMMED_BEFORE
    other_name = asked(1, 2, 3, federation="banks")
    demand_harmless(other_name, [*given, linked_for(other_name)], min_cohort=2)


def test_on_another_base_model_everybody_may_be_summed_again():
    moved = asked(0, 1, 2, number=2, base=NEW)
    known = [LINKED, asked(0, 1, 2), linked_for(moved)]
    demand_harmless(moved, known, min_cohort=2)


def test_it_does_not_come_back_to_a_base_model_that_it_left():
    """Neither to sum nor to link nor to compare, and whoever it is about."""
    known = []
    for said in (
        LINKED,
        asked(0, 1, 2),
        linked_for(asked(0, 1, 2, base=NEW)),
        asked(0, 1, 2, number=2, base=NEW),
    ):
        known = remember(known, said)
    for call in (
        lambda: demand_harmless(asked(3, 4, number=3), known, min_cohort=2),
        lambda: demand_harmless(asked(0, 1, 2), known, min_cohort=2),
        lambda: find_unlinkable(LINKED, known),
        lambda: find_unlinkable(linked_for(asked(3, 4, number=3)), known),
        lambda: demand_comparable(pair_up(3, 4, 5), known, min_cohort=2),
    ):
        assert refusal(call) is RefusalCode.BASE_LEFT


def test_what_it_has_to_remember_does_not_grow_with_the_rounds():
    known = []
    for number in range(1, 40):
        base = bytes([number]) * 32
        sum_of_all = asked(*range(9), number=number, base=base)
        for federation in ("clinics", "banks"):
            summed = replace(sum_of_all, federation_id=federation)
            known = remember(known, linked_for(summed, seed=number))
            demand_harmless(summed, known, min_cohort=2)
            known = remember(known, summed)
    kinds = [type(item) for item in known]
    assert (kinds.count(Linked), kinds.count(Summed)) == (2, 2)
    assert kinds.count(Left) == len(known) - 4 == 2 * 38


def test_only_what_was_linked_is_summed():
    known = [linked(0, 1), linked(2, seed=2)]
    demand_harmless(asked(0, 1, 2), known, min_cohort=2)
    code = refusal(lambda: demand_harmless(asked(0, 1, 3), known, min_cohort=2))
    assert code is RefusalCode.NOT_LINKED


def test_of_all_sums_over_a_base_model_only_disjoint_ones_are_given():
    """Of all pairs of sets of five agents, whatever their commitments are."""
    sets = [
        chosen for size in range(6) for chosen in itertools.combinations(range(5), size)
    ]
    for first, second in itertools.product(sets, repeat=2):
        given = [LINKED, linked_for(anew(asked(*range(5))))]
        for summed in (asked(*first), anew(asked(*second))):
            try:
                demand_harmless(summed, given, min_cohort=2)
            except PartyRefusesError:
                continue
            given.append(summed)
        if len(given) == 4:
            assert not set(first) & set(second)
            assert min(len(first), len(second)) >= 2


def linked(*updates: int, seed: int = 1, proof: int = 0) -> Linked:
    return Linked(
        federation_id="clinics",
        base_model=OLD,
        updates=tuple(
            (*_UPDATES[i][:2], bytes([seed]) * 16 + bytes([proof + i]) * 16)
            for i in updates
        ),
    )


def test_the_same_links_may_be_asked_for_again_and_others_added():
    known = [linked(0, 1), asked(0, 1)]
    assert not find_unlinkable(linked(0, 1), known)
    assert not find_unlinkable(linked(0, 1, 2), known)
    assert not find_unlinkable(linked(3, 4, seed=2), known)


@pytest.mark.parametrize(
    ("other", "places"),
    [
        (linked(0, seed=2), {0}),
        (linked(2, 1, seed=2), {1}),
        (linked(0, proof=9), {0}),
        (linked(2, 3, seed=2), set()),
    ],
)
def test_an_update_is_linked_once(other, places):
    assert find_unlinkable(other, [linked(0, 1)]).keys() == places


def test_an_agent_that_was_summed_is_not_linked_again_for_the_same_base_model():
    """So the others' sum goes on."""
    known = [linked(0, 1, 2), asked(0, 1, 2)]
    again = linked_for(anew(asked(1, 3, 4)))
    ((place, (code, _)),) = find_unlinkable(again, known).items()
    assert (place, code) == (0, RefusalCode.AGENT_SUMMED_BEFORE)


def test_of_two_with_the_same_commitments_the_first_is_linked():
    [first], [second] = linked(0).updates, linked(0, proof=9).updates
    twins = replace(linked(0), updates=(first, second, *linked(1).updates))
    assert find_unlinkable(twins, []).keys() == {1}
    # Asked again after a restart, it is the same one.
    known = [replace(twins, updates=(first, *linked(1).updates))]
    assert find_unlinkable(twins, known).keys() == {1}


def pair_up(*updates: int, threshold: int = 9, attempt: int = 1) -> Compared:
    return Compared(
        federation_id="clinics",
        base_model=OLD,
        updates=tuple(_UPDATES[i][1] for i in updates),
        far_threshold=threshold,
        attempt=attempt,
    )


def test_a_comparison_may_be_begun_again_but_not_for_ever():
    known: list = [LINKED]
    for attempt in range(1, MAX_COMPARISONS + 1):
        permitted = demand_comparable(pair_up(0, 1, 2), known, min_cohort=2)
        assert permitted == pair_up(0, 1, 2, attempt=attempt)
        known.append(permitted)
    code = refusal(lambda: demand_comparable(pair_up(0, 1, 2), known, min_cohort=2))
    assert code is RefusalCode.COMPARED_TOO_OFTEN
    demand_comparable(pair_up(3, 4, 5), known, min_cohort=3)


def test_an_agent_is_compared_so_often_whatever_it_commits_to():
    """Or who gives rounds up and asks again learns bits without end: of one update."""

    def recommit(seed: int, base: bytes = OLD) -> Linked:
        update = ("agent0", bytes([50 + seed]) * 32, bytes([seed]) * 32)
        return Linked(federation_id="clinics", base_model=base, updates=(update,))

    def compare(seed: int, *others: int) -> Compared:
        digests = recommit(seed).updates[0][1], *(_UPDATES[i][1] for i in others)
        return replace(pair_up(), updates=digests)

    known: list = [LINKED, *map(recommit, range(3))]
    for seed, others in ((0, (1, 2)), (1, (3, 4))):
        for attempt in range(1, MAX_COMPARISONS // 2 + 1):
            permitted = demand_comparable(compare(seed, *others), known, min_cohort=2)
            assert permitted == replace(compare(seed, *others), attempt=attempt)
            known.append(permitted)
    again = compare(2, 5, 6)
    code = refusal(lambda: demand_comparable(again, known, min_cohort=2))
    assert code is RefusalCode.COMPARED_TOO_OFTEN
    # The others were not compared so often; and over another base model nobody was.
    demand_comparable(pair_up(5, 6, 7), known, min_cohort=2)
    known += (replace(LINKED, base_model=NEW), recommit(2, NEW))
    demand_comparable(replace(again, base_model=NEW), known, min_cohort=2)


@pytest.mark.parametrize(
    "other", [pair_up(0, 1, 2, 3), pair_up(2, 3, 4), pair_up(0, 1, 2, threshold=8)]
)
def test_an_update_is_compared_in_one_set_to_one_threshold(other):
    known = [LINKED, pair_up(0, 1, 2)]
    code = refusal(lambda: demand_comparable(other, known, min_cohort=2))
    assert code is RefusalCode.COMPARED_BEFORE


@pytest.mark.parametrize("min_cohort", [2, 3, 4])
def test_few_are_not_compared(min_cohort):
    fewest = max(3, min_cohort)
    for few in (pair_up(*range(fewest - 1)), pair_up(*range(fewest - 1), 0)):
        code = refusal(
            lambda few=few: demand_comparable(few, [LINKED], min_cohort=min_cohort)
        )
        assert code is RefusalCode.COHORT_TOO_SMALL
    demand_comparable(pair_up(*range(fewest)), [LINKED], min_cohort=min_cohort)


def test_what_was_not_linked_is_not_compared():
    known = [linked(0, 1)]
    code = refusal(lambda: demand_comparable(pair_up(0, 1, 2), known, min_cohort=2))
    assert code is RefusalCode.NOT_LINKED


# The memory


def test_comparisons_are_remembered(directory):
    log = open_linked(directory)
    for _ in range(2):
        log.permit_comparison(pair_up(0, 1, 2), min_cohort=3)
    log.permit_sum(asked(0, 1, 2), min_cohort=2)
    log.close()
    again = PartyLog(directory)
    attempts = pair_up(0, 1, 2), pair_up(0, 1, 2, attempt=2)
    assert again.known == (LINKED, *attempts, asked(0, 1, 2))
    code = refusal(lambda: again.permit_comparison(pair_up(0, 1, 3), min_cohort=3))
    assert code is RefusalCode.COMPARED_BEFORE


def test_links_are_remembered(directory):
    log = PartyLog(directory)
    log.permit_links(linked(0, 1))
    log.permit_sum(asked(0, 1), min_cohort=2)
    log.permit_links(linked(0, 1))
    log.close()
    again = PartyLog(directory)
    assert again.known == (linked(0, 1), asked(0, 1))
    assert again.permit_links(linked(1, 5, seed=2)).keys() == {0}
    assert again.permit_links(linked(1, seed=2)).keys() == {0}
    assert again.known[2:] == (linked(5, seed=2),)


def test_what_was_given_is_remembered(directory):
    log = open_linked(directory)
    log.permit_sum(asked(0, 1, 2), min_cohort=2)
    log.permit_sum(asked(0, 1, 2), min_cohort=2)
    log.permit_sum(asked(3, 4, number=2), min_cohort=2)
    log.close()
    again = PartyLog(directory)
    assert again.known == (LINKED, asked(0, 1, 2), asked(3, 4, number=2))
    code = refusal(lambda: again.permit_sum(asked(4, 5, number=3), min_cohort=2))
    assert code is RefusalCode.AGENT_SUMMED_BEFORE
    assert (directory / SAID_FILE).stat().st_mode & 0o777 == 0o600


def test_what_was_left_stays_left(directory):
    log = open_linked(directory)
    log.permit_sum(asked(0, 1, 2), min_cohort=2)
    moved = anew(asked(0, 1, 2, base=NEW))
    log.permit_links(linked_for(moved))
    log.permit_sum(moved, min_cohort=2)
    known = log.known
    log.close()
    again = PartyLog(directory)
    assert again.known == known
    assert known == (
        linked_for(moved),
        Left(federation_id="clinics", base_model=OLD),
        moved,
    )
    code = refusal(lambda: again.permit_sum(asked(0, 1, 2), min_cohort=2))
    assert code is RefusalCode.BASE_LEFT


def test_what_was_refused_is_not_remembered(directory):
    log = open_linked(directory)
    refusal(lambda: log.permit_sum(asked(0), min_cohort=2))
    assert log.known == (LINKED,)
    log.permit_sum(asked(0, 1), min_cohort=2)


def test_it_is_durable_before_the_sum_is_given(directory, monkeypatch):
    log = open_linked(directory)
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda _: synced.append((directory / SAID_FILE).read_bytes())
    )
    log.permit_sum(asked(0, 1), min_cohort=2)
    assert synced == [(directory / SAID_FILE).read_bytes()]
    assert b"summed" in synced[0]


def test_a_crash_in_the_middle_of_a_line_loses_only_that(directory):
    log = open_linked(directory)
    log.permit_sum(asked(2, 3, number=2), min_cohort=2)
    log.close()
    path = directory / SAID_FILE
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for cut in range(first, len(data)):
        path.write_bytes(data[:cut])
        log = PartyLog(directory)
        assert log.known == (LINKED,)
        log.permit_sum(asked(4, 5, number=3), min_cohort=2)
        log.close()
        again = PartyLog(directory)
        assert again.known == (LINKED, asked(4, 5, number=3))
        again.close()


def test_a_full_disk_costs_nothing_but_a_start(directory, monkeypatch):
    """It may have room again while the line that did not fit is there by half."""
    log = open_linked(directory)
    real = os.fsync

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="space"):
        log.permit_sum(asked(2, 3, number=2), min_cohort=2)
    monkeypatch.setattr(os, "fsync", real)
    with pytest.raises(PartyLogError, match="start the party again"):
        log.permit_sum(asked(4, 5, number=3), min_cohort=2)
    log.close()
    again = PartyLog(directory)
    again.permit_sum(asked(2, 3, number=2), min_cohort=2)
    again.permit_sum(asked(4, 5, number=3), min_cohort=2)
    again.close()
    said = (LINKED, asked(2, 3, number=2), asked(4, 5, number=3))
    assert PartyLog(directory).known == said


def test_any_changed_byte_is_found(directory):
    log = PartyLog(directory)
    log.permit_links(linked(2, 3, 4))
    log.permit_comparison(pair_up(2, 3, 4), min_cohort=3)
    log.permit_sum(asked(2, 3, number=2), min_cohort=2)
    log.close()
    path = directory / SAID_FILE
    data = path.read_bytes()
    for place in range(len(data) - 1):  # without the last end of line: as if cut
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(
            PartyLogError,
            match=r"not what was written.*make another party.*never-be-restored",
        ):
            PartyLog(directory)
    first = data.index(b"\n") + 1
    for lines in (data[first:], data[:first] * 2, data + data[:first]):
        path.write_bytes(lines)
        with pytest.raises(
            PartyLogError,
            match=r"not what was written.*make another party.*never-be-restored",
        ):
            PartyLog(directory)


def test_a_memory_that_is_gone_is_not_made_again(directory):
    (directory / SAID_FILE).unlink()
    with pytest.raises(
        PartyLogError, match=r"is gone.*make another party.*never-be-restored"
    ):
        PartyLog(directory)


def test_one_process_at_a_time(directory):
    log = PartyLog(directory)
    with pytest.raises(PartyLogError, match=r"process .* uses .*: stop it first"):
        PartyLog(directory)
    log.close()
    PartyLog(directory).close()


def test_making_it_again_keeps_it(directory):
    open_linked(directory).close()
    create_party_log(directory)
    assert PartyLog(directory).known == (LINKED,)

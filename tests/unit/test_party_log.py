"""What a party gives, and what it remembers of it."""

import errno
import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.party_log import SAID_FILE, PartyLog, PartyLogError, create_party_log
from protocol.contributions import Contribution
from protocol.parties import (
    MAX_COMPARISONS,
    Compared,
    Linked,
    PartyRefusesError,
    RefusalCode,
    Summed,
    demand_comparable,
    demand_harmless,
    find_linked_before,
)
from schemas import events as e
from tests.simulation.federation import BASE

_UPDATES = tuple((bytes([i]) * 32, 10 + i) for i in range(9))


def asked(*updates: int, number: int = 1, federation: str = "clinics") -> Summed:
    return Summed(
        federation_id=federation,
        round=number,
        cause=bytes([number]) * 32,
        updates=tuple(_UPDATES[i] for i in updates),
    )


LINKED = Linked(
    projection_seed=bytes(32),
    updates=tuple((digest, bytes(32)) for digest, _ in _UPDATES),
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
        cause=b"c" * 32,
        updates=((b"a" * 32, 4), (b"b" * 32, 5)),
    )


@pytest.mark.parametrize("min_cohort", [0, 1, 2, 3])
def test_a_small_cohort_is_refused(min_cohort):
    smallest = max(2, min_cohort)
    few = asked(*range(smallest - 1))
    code = refusal(lambda: demand_harmless(few, [LINKED], min_cohort=min_cohort))
    assert code is RefusalCode.COHORT_TOO_SMALL
    demand_harmless(asked(*range(smallest)), [LINKED], min_cohort=min_cohort)


def test_an_update_is_not_summed_twice_in_one_sum():
    twice = asked(0, 1, 1)
    code = refusal(lambda: demand_harmless(twice, [LINKED], min_cohort=2))
    assert code is RefusalCode.UPDATE_SUMMED_BEFORE


def test_the_same_sum_may_be_asked_for_again():
    demand_harmless(asked(0, 1, 2), [LINKED, asked(0, 1, 2)], min_cohort=2)


@pytest.mark.parametrize("other", [(3, 4, 5), (0, 1), (0, 1, 2, 3)])
def test_a_round_has_one_sum(other):
    given = [LINKED, asked(0, 1, 2)]
    code = refusal(lambda: demand_harmless(asked(*other), given, min_cohort=2))
    assert code is RefusalCode.SECOND_SUM


def test_other_weights_are_another_sum():
    first = asked(0, 1)
    other = replace(first, updates=((_UPDATES[0][0], 1), _UPDATES[1]))
    code = refusal(lambda: demand_harmless(other, [LINKED, first], min_cohort=2))
    assert code is RefusalCode.SECOND_SUM


@pytest.mark.parametrize("federation", ["clinics", "forged"])
def test_an_update_enters_one_sum(federation):
    other = asked(2, 3, 4, number=2, federation=federation)
    code = refusal(
        lambda: demand_harmless(other, [LINKED, asked(0, 1, 2)], min_cohort=2)
    )
    assert code is RefusalCode.UPDATE_SUMMED_BEFORE


def test_a_federation_that_is_founded_anew_counts_from_1_again():
    again = replace(asked(3, 4), cause=b"x" * 32)
    demand_harmless(again, [LINKED, asked(0, 1, 2)], min_cohort=2)


def test_only_what_was_linked_is_summed():
    known = [linked(0, 1), linked(2, seed=2)]
    demand_harmless(asked(0, 1, 2), known, min_cohort=2)
    code = refusal(lambda: demand_harmless(asked(0, 1, 3), known, min_cohort=2))
    assert code is RefusalCode.NOT_LINKED


def test_no_two_sums_show_a_difference():
    """Of all pairs of sets of five updates only disjoint ones are both given."""
    sets = [
        chosen for size in range(6) for chosen in itertools.combinations(range(5), size)
    ]
    for first, second in itertools.product(sets, repeat=2):
        given = [LINKED]
        for number, chosen in enumerate((first, second), start=1):
            try:
                demand_harmless(asked(*chosen, number=number), given, min_cohort=2)
            except PartyRefusesError:
                continue
            given.append(asked(*chosen, number=number))
        if len(given) == 3:
            assert not set(first) & set(second)
            assert min(len(first), len(second)) >= 2


def linked(*updates: int, seed: int = 1, proof: int = 0) -> Linked:
    return Linked(
        projection_seed=bytes([seed]) * 32,
        updates=tuple((_UPDATES[i][0], bytes([proof + i]) * 32) for i in updates),
    )


def test_the_same_links_may_be_asked_for_again_and_others_added():
    known = [linked(0, 1), asked(0, 1)]
    assert not find_linked_before(linked(0, 1), known)
    assert not find_linked_before(linked(0, 1, 2), known)
    assert not find_linked_before(linked(3, 4, seed=2), known)


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
    assert find_linked_before(other, [linked(0, 1)]) == places


def test_of_two_with_the_same_commitments_the_first_is_linked():
    [first], [second] = linked(0).updates, linked(0, proof=9).updates
    twins = replace(linked(0), updates=(first, second, *linked(1).updates))
    assert find_linked_before(twins, []) == {1}
    # Asked again after a restart, it is the same one.
    known = [replace(twins, updates=(first, *linked(1).updates))]
    assert find_linked_before(twins, known) == {1}


def pair_up(*updates: int, threshold: int = 9, attempt: int = 1) -> Compared:
    return Compared(
        updates=tuple(_UPDATES[i][0] for i in updates),
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
    assert again.said == (LINKED, *attempts, asked(0, 1, 2))
    code = refusal(lambda: again.permit_comparison(pair_up(0, 1, 3), min_cohort=3))
    assert code is RefusalCode.COMPARED_BEFORE


def test_links_are_remembered(directory):
    log = PartyLog(directory)
    log.permit_links(linked(0, 1))
    log.permit_sum(asked(0, 1), min_cohort=2)
    log.permit_links(linked(0, 1))
    log.close()
    again = PartyLog(directory)
    assert again.said == (linked(0, 1), asked(0, 1))
    assert again.permit_links(linked(1, 5, seed=2)) == {0}
    assert again.permit_links(linked(1, seed=2)) == {0}
    assert again.said[2:] == (linked(5, seed=2),)


def test_what_was_given_is_remembered(directory):
    log = open_linked(directory)
    log.permit_sum(asked(0, 1, 2), min_cohort=2)
    log.permit_sum(asked(0, 1, 2), min_cohort=2)
    log.permit_sum(asked(3, 4, number=2), min_cohort=2)
    log.close()
    again = PartyLog(directory)
    assert again.said == (LINKED, asked(0, 1, 2), asked(3, 4, number=2))
    code = refusal(lambda: again.permit_sum(asked(4, 5, number=3), min_cohort=2))
    assert code is RefusalCode.UPDATE_SUMMED_BEFORE
    assert (directory / SAID_FILE).stat().st_mode & 0o777 == 0o600


def test_what_was_refused_is_not_remembered(directory):
    log = open_linked(directory)
    refusal(lambda: log.permit_sum(asked(0), min_cohort=2))
    assert log.said == (LINKED,)
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
        assert log.said == (LINKED,)
        log.permit_sum(asked(4, 5, number=3), min_cohort=2)
        log.close()
        again = PartyLog(directory)
        assert again.said == (LINKED, asked(4, 5, number=3))
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
    assert PartyLog(directory).said == said


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
    with pytest.raises(PartyLogError, match="another process"):
        PartyLog(directory)
    log.close()
    PartyLog(directory).close()


def test_making_it_again_keeps_it(directory):
    open_linked(directory).close()
    create_party_log(directory)
    assert PartyLog(directory).said == (LINKED,)

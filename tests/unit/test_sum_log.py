"""What a party gives, and what it remembers of it."""

import itertools
import os
from dataclasses import replace

import pytest

from adapters.sum_log import SUMS_FILE, SumLog, SumLogError, create_sum_log
from protocol.parties import RefusalCode, Summed, SumRefusedError, demand_harmless
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


def refusal(call):
    with pytest.raises(SumRefusedError) as caught:
        call()
    assert caught.value.code in str(caught.value)
    return caught.value.code


@pytest.fixture
def directory(tmp_path):
    create_sum_log(tmp_path / "p0")
    return tmp_path / "p0"


# The rules


def test_a_sum_is_over_the_sealed_set():
    sealed = e.RoundSealed(
        federation_id="clinics",
        round=7,
        cause=b"c" * 32,
        cause_leaf_index=3,
        output_index=1,
        contributions=(
            e.Contribution(agent_id="ana", update_sha256=b"a" * 32, num_examples=4),
            e.Contribution(agent_id="bea", update_sha256=b"b" * 32, num_examples=5),
        ),
        num_examples=9,
        base_model=BASE,
        fractional_bits=16,
        num_parameters=4,
    )
    assert Summed.of(sealed) == Summed(
        federation_id="clinics",
        round=7,
        cause=b"c" * 32,
        updates=((b"a" * 32, 4), (b"b" * 32, 5)),
    )


@pytest.mark.parametrize("min_cohort", [0, 1, 2, 3])
def test_a_small_cohort_is_refused(min_cohort):
    smallest = max(2, min_cohort)
    few = asked(*range(smallest - 1))
    code = refusal(lambda: demand_harmless(few, [], min_cohort=min_cohort))
    assert code is RefusalCode.COHORT_TOO_SMALL
    demand_harmless(asked(*range(smallest)), [], min_cohort=min_cohort)


def test_an_update_is_not_summed_twice_in_one_sum():
    twice = asked(0, 1, 1)
    code = refusal(lambda: demand_harmless(twice, [], min_cohort=2))
    assert code is RefusalCode.UPDATE_SUMMED_BEFORE


def test_the_same_sum_may_be_asked_for_again():
    demand_harmless(asked(0, 1, 2), [asked(0, 1, 2)], min_cohort=2)


@pytest.mark.parametrize("other", [(3, 4, 5), (0, 1), (0, 1, 2, 3)])
def test_a_round_has_one_sum(other):
    given = [asked(0, 1, 2)]
    code = refusal(lambda: demand_harmless(asked(*other), given, min_cohort=2))
    assert code is RefusalCode.SECOND_SUM


def test_other_weights_are_another_sum():
    first = asked(0, 1)
    other = replace(first, updates=((_UPDATES[0][0], 1), _UPDATES[1]))
    code = refusal(lambda: demand_harmless(other, [first], min_cohort=2))
    assert code is RefusalCode.SECOND_SUM


@pytest.mark.parametrize("federation", ["clinics", "forged"])
def test_an_update_enters_one_sum(federation):
    other = asked(2, 3, 4, number=2, federation=federation)
    code = refusal(lambda: demand_harmless(other, [asked(0, 1, 2)], min_cohort=2))
    assert code is RefusalCode.UPDATE_SUMMED_BEFORE


def test_a_federation_that_is_founded_anew_counts_from_1_again():
    again = replace(asked(3, 4), cause=b"x" * 32)
    demand_harmless(again, [asked(0, 1, 2)], min_cohort=2)


def test_no_two_sums_show_a_difference():
    """Of all pairs of sets of five updates only disjoint ones are both given."""
    sets = [
        chosen for size in range(6) for chosen in itertools.combinations(range(5), size)
    ]
    for first, second in itertools.product(sets, repeat=2):
        given = []
        for number, chosen in enumerate((first, second), start=1):
            try:
                demand_harmless(asked(*chosen, number=number), given, min_cohort=2)
            except SumRefusedError:
                continue
            given.append(asked(*chosen, number=number))
        if len(given) == 2:
            assert not set(first) & set(second)
            assert min(len(first), len(second)) >= 2


# The memory


def test_what_was_given_is_remembered(directory):
    log = SumLog(directory)
    log.permit(asked(0, 1, 2), min_cohort=2)
    log.permit(asked(0, 1, 2), min_cohort=2)
    log.permit(asked(3, 4, number=2), min_cohort=2)
    log.close()
    again = SumLog(directory)
    assert again.given == (asked(0, 1, 2), asked(3, 4, number=2))
    code = refusal(lambda: again.permit(asked(4, 5, number=3), min_cohort=2))
    assert code is RefusalCode.UPDATE_SUMMED_BEFORE
    assert (directory / SUMS_FILE).stat().st_mode & 0o777 == 0o600


def test_what_was_refused_is_not_remembered(directory):
    log = SumLog(directory)
    refusal(lambda: log.permit(asked(0), min_cohort=2))
    assert log.given == ()
    log.permit(asked(0, 1), min_cohort=2)


def test_it_is_durable_before_the_sum_is_given(directory, monkeypatch):
    log = SumLog(directory)
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda _: synced.append((directory / SUMS_FILE).read_bytes())
    )
    log.permit(asked(0, 1), min_cohort=2)
    assert synced == [(directory / SUMS_FILE).read_bytes()]
    assert synced[0]


def test_a_crash_in_the_middle_of_a_line_loses_only_that(directory):
    log = SumLog(directory)
    log.permit(asked(0, 1), min_cohort=2)
    log.permit(asked(2, 3, number=2), min_cohort=2)
    log.close()
    path = directory / SUMS_FILE
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for cut in range(first, len(data)):
        path.write_bytes(data[:cut])
        log = SumLog(directory)
        assert log.given == (asked(0, 1),)
        log.permit(asked(4, 5, number=3), min_cohort=2)
        log.close()
        again = SumLog(directory)
        assert again.given == (asked(0, 1), asked(4, 5, number=3))
        again.close()


def test_any_changed_byte_is_found(directory):
    log = SumLog(directory)
    log.permit(asked(0, 1), min_cohort=2)
    log.permit(asked(2, 3, number=2), min_cohort=2)
    log.close()
    path = directory / SUMS_FILE
    data = path.read_bytes()
    for place in range(len(data) - 1):  # without the last end of line: as if cut
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(SumLogError, match="not what was written"):
            SumLog(directory)
    first = data.index(b"\n") + 1
    for lines in (data[first:], data[:first] * 2, data + data[:first]):
        path.write_bytes(lines)
        with pytest.raises(SumLogError, match="not what was written"):
            SumLog(directory)


def test_a_memory_that_is_gone_is_not_made_again(directory):
    (directory / SUMS_FILE).unlink()
    with pytest.raises(SumLogError, match="is gone"):
        SumLog(directory)


def test_one_process_at_a_time(directory):
    log = SumLog(directory)
    with pytest.raises(SumLogError, match="another process"):
        SumLog(directory)
    log.close()
    SumLog(directory).close()


def test_making_it_again_keeps_it(directory):
    log = SumLog(directory)
    log.permit(asked(0, 1), min_cohort=2)
    log.close()
    create_sum_log(directory)
    assert SumLog(directory).given == (asked(0, 1),)

"""Our murmur2 is Kafka's: as its own tests have it, and as its clients compute it."""

import pytest
from aiokafka.partitioner import murmur2 as by_aiokafka
from hypothesis import given
from hypothesis import strategies as st

from adapters.partitions import compute_partition, murmur2

# org.apache.kafka.common.utils.UtilsTest.testMurmur2; Java's int is signed.
VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("data", VECTORS)
def test_the_hash_is_that_of_kafkas_own_tests(data):
    assert murmur2(data) == VECTORS[data] % 2**32


@given(st.binary(max_size=70))
def test_the_hash_is_that_of_another_client(data):
    assert murmur2(data) == by_aiokafka(data)


def test_the_sign_bit_does_not_count():
    assert murmur2(b"21") >> 31
    assert compute_partition("21", 2**31) == VECTORS[b"21"] % 2**31
    assert compute_partition("abc", 1) == 0

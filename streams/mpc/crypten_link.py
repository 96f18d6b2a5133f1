"""CrypTen over a party link: communicator, provider, dealer. Only this loads CrypTen.

CrypTen 0.4.1 computes on additive shares modulo 2^64: products from dealt triples
(Beaver), comparisons by a circuit on bits. What is replaced, and why:

- **An import.** It asks for ``torch.onnx._internal.registration``, which newer torch
  keeps elsewhere; only its converter of models needs it.
- **The communicator.** Its own is gloo: plain text to whoever connects, and pickled
  objects from them. `LinkCommunicator` sends tensors over an `adapters.modes.mpc.link`
  and has what arithmetic and comparisons need: rank, number of parties, `all_reduce`.
  Anything else raises NotImplementedError.
- **The way to the dealer.** TTPClient and TTPServer talk through torch.distributed;
  `_DealerClient` and `Dealer` through the link, in integers. CrypTen's own code
  computes what is dealt.
- **Randomness.** Its generators are Mersenne Twisters with 64-bit seeds: anyone who
  sees some of their output can compute the rest, shares included. Zero sharings and
  triples are drawn here from AES-256 in counter mode under 32-byte keys that each pair
  of parties, and the dealer with each party, choose for one link.

It deliberately doesn't call ``crypten.init``, which would open torch.distributed. All
of this is process-wide state: one computation at a time.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch.distributed import ReduceOp
from torch.onnx._internal.torchscript_exporter import registration

from adapters.modes.mpc.link import ArrayKind, PartyLink
from protocol.modes.mpc.configuration import MAX_COMPARED
from protocol.modes.mpc.sketches import NUM_BUCKETS
from streams.mpc.robustness import (
    RobustnessError,
    RobustnessFailure,
    check_configuration,
)

sys.modules.setdefault("torch.onnx._internal.registration", registration)

# After the line above, which it needs.
import crypten  # noqa: E402
import crypten.communicator  # noqa: E402
from crypten.config import cfg  # noqa: E402
from crypten.mpc import MPCTensor  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor, arithmetic, binary  # noqa: E402
from crypten.mpc.provider import ttp_provider  # noqa: E402

KEY_SIZE: Final = 32
MAX_DEALT_WORDS: Final = 2**22
"""The most integers in one tensor of a request: 32 MiB."""
_WORD_SIZE: Final = 8
_CPU: Final = torch.device("cpu")
_KEY_KIND: Final = ArrayKind(np.dtype("u1"), (KEY_SIZE,))
#: What a dealer is asked for, and the end of it.
_FUNCTIONS: Final = ("additive", "binary", "B2A")
_END: Final = np.array([len(_FUNCTIONS)], dtype=np.int64)
_MAX_REQUEST_BYTES: Final = 256

torch.set_num_threads(1)
cfg.mpc.provider = "TTP"
cfg.mpc.protocol = "beaver"


class _Stream:
    """Stands in for a torch.Generator in draws: AES-256 in counter mode.

    **Secret:** the key. All who share it must draw the same in the same order.
    """

    device = _CPU

    def __init__(self, key: bytes) -> None:
        cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16)))
        self._encryptor = cipher.encryptor()

    def draw(self, size: Sequence[int]) -> torch.Tensor:
        """Return uniform integers modulo 2^64 of this shape, as int64."""
        drawn = bytearray(_WORD_SIZE * math.prod(size))
        self._encryptor.update_into(drawn, drawn)
        words = np.frombuffer(drawn, dtype="<i8").astype(np.int64, copy=False)
        return torch.from_numpy(words.reshape(tuple(size)))


def _draw_words(
    size: Sequence[int], *, generator: _Stream, device: Any = None
) -> torch.Tensor:
    assert device in {None, _CPU}, "nothing is computed elsewhere"
    return generator.draw(size)


def _draw_bits(
    size: Sequence[int],
    bitlength: int | None = None,
    *,
    generator: _Stream,
    device: Any = None,
) -> torch.Tensor:
    words = _draw_words(size, generator=generator, device=device)
    return words if bitlength is None else words & (2**bitlength - 1)


# The modules call CrypTen's own by these names.
arithmetic.generate_random_ring_element = _draw_words
binary.generate_kbit_random_tensor = _draw_bits
ttp_provider.generate_random_ring_element = _draw_words
ttp_provider.generate_kbit_random_tensor = _draw_bits


class LinkCommunicator(crypten.communicator.Communicator):
    """CrypTen's view of a link: the dealer has the last rank, and takes no part."""

    BYTES_PER_ELEMENT = _WORD_SIZE
    instance: ClassVar[LinkCommunicator | None] = None

    def __init__(self, link: PartyLink) -> None:
        self._link = link
        parties = range(self.get_world_size())
        self._others = [party for party in parties if party != link.rank]
        self.reset_communication_stats()

    @classmethod
    def is_initialized(cls) -> bool:
        """Return whether there is one."""
        return cls.instance is not None

    @classmethod
    def get(cls) -> LinkCommunicator | None:
        """Return the one in use."""
        return cls.instance

    def get_rank(self) -> int:
        """Return our rank."""
        return self._link.rank

    def get_world_size(self) -> int:
        """Return how many parties there are, without the dealer."""
        return self._link.num_peers - 1

    def all_reduce(
        self, given: Any, op: Any = ReduceOp.SUM, *, batched: bool = False
    ) -> Any:
        """Return the sum, or the exclusive or, of all parties' tensors.

        Args:
            given: A tensor of int64; or a list of them, if batched.
            op: SUM, modulo 2^64, or BXOR.
            batched: Whether it is a list.

        Raises:
            LinkError: a party is gone, silent, or gave a tensor of another shape.
        """
        tensors = given if batched else [given]
        flat = np.concatenate([tensor.numpy().reshape(-1) for tensor in tensors])
        combine = {ReduceOp.SUM: np.add, ReduceOp.BXOR: np.bitwise_xor}[op]
        for other in self._link.exchange(flat, self._others):
            combine(flat, other, out=flat)
        self.comm_rounds += 1
        ends = np.cumsum([tensor.numel() for tensor in tensors])[:-1]
        results = [
            torch.from_numpy(part.reshape(tuple(tensor.shape)))
            for part, tensor in zip(np.split(flat, ends), tensors, strict=True)
        ]
        return results if batched else results[0]


crypten.communicator.DistributedCommunicator = LinkCommunicator


class _DealerClient:
    """Replaces CrypTen's TTPClient."""

    def __init__(self, link: PartyLink, stream: _Stream) -> None:
        self._link = link
        self._stream = stream

    def get(self) -> _DealerClient:
        return self

    def get_generator(self, device: Any = None) -> _Stream:
        assert device in {None, _CPU}, "nothing is computed elsewhere"
        return self._stream

    def ttp_request(self, function: str, _device: Any, *args: Any) -> torch.Tensor:
        """Request what party 0 lacks of a triple; the others draw theirs."""
        dealer = self._link.num_peers - 1
        first = tuple(args[0])
        second = tuple(args[1]) if len(args) > 1 else ()
        request = [_FUNCTIONS.index(function), len(first), *first, *second]
        self._link.send(dealer, np.array(request, dtype=np.int64))
        size = _WORD_SIZE * MAX_DEALT_WORDS
        return torch.from_numpy(
            self._link.receive(dealer, max_size_bytes=size).astype(np.int64)
        )


class Dealer(ttp_provider.TTPServer):
    """Deals triples: random a, b and a b, in shares that no P-1 parties can add up.

    It sees neither shares nor results; but it knows every mask, so together with one
    party's view it could open everything. No party may control it.

    Args:
        link: To the parties; we are the last.
    """

    def __init__(self, link: PartyLink) -> None:  # not TTPServer's, which never ends
        self._link = link
        self.device = "cpu"
        keys = [os.urandom(KEY_SIZE) for _ in range(link.num_peers - 1)]
        for party, key in enumerate(keys):
            link.send(party, np.frombuffer(key, dtype=np.uint8))
        self.generators = [_Stream(key) for key in keys]

    def serve(self) -> None:
        """Deal until party 0 ends it.

        Raises:
            LinkError: a party is gone or silent.
            RobustnessError: party 0 asks for what is not dealt.
        """
        while True:
            request = self._link.receive(0, max_size_bytes=_MAX_REQUEST_BYTES)
            if np.array_equal(request, _END):
                return
            function, *args = _parse_request(request)
            result = getattr(self, function)(*args)
            self._link.send(0, result.numpy())


def _parse_request(request: NDArray[Any]) -> tuple[Any, ...]:
    if request.ndim != 1 or len(request) < 2 or request.dtype != np.int64:  # noqa: PLR2004  # function, dimensions
        raise _refuse(request)
    code, num_dimensions, *sizes = request.tolist()
    first, second = (
        torch.Size(sizes[:num_dimensions]),
        torch.Size(sizes[num_dimensions:]),
    )
    num_agents = first[0] if first else 0
    # Zeros don't make the other dimensions harmless: numpy multiplies those too.
    if (
        any(n < 0 for n in sizes)
        or math.prod(size or 1 for size in first) > MAX_DEALT_WORDS
    ):
        raise _refuse(request)
    if code == 0 and num_agents <= MAX_COMPARED:
        # Only products of the sketches with themselves.
        if first == (num_agents, NUM_BUCKETS) and second == (NUM_BUCKETS, num_agents):
            return "additive", first, second, "matmul"
    elif code == 1 and first == second:
        return "binary", first, second
    elif code == 2 and not second:  # noqa: PLR2004  # an index
        return "B2A", first
    raise _refuse(request)


def _refuse(request: NDArray[Any]) -> RobustnessError:
    detail = f"a dealer was asked for what it does not deal: {request.tolist()}"
    return RobustnessError(RobustnessFailure.NOT_DEALT, detail)


def compute_far_bits(
    link: PartyLink, sketches: NDArray[np.uint64], threshold: int
) -> NDArray[np.int64]:
    """Return, for each pair of agents, 1 if their sketches are far apart, else 0.

    Args:
        link: To the other parties, and to a dealer, the last of them.
        sketches: Our shares, shape (N, 512), N at least 2. **Secret.**
        threshold: On squared distances, at most 2^62.

    Returns:
        In the order of pairs (see `protocol.modes.mpc.sketches`), as all parties opened
        it. Anything, if shares were no shares of sketches.

    Raises:
        UnsafeConfigurationError: CrypTen has a leaky configuration.
        LinkError: a peer is gone, silent, or computes something else.
    """
    check_configuration(cfg.mpc.provider, cfg.mpc.protocol)
    LinkCommunicator.instance = LinkCommunicator(link)
    _agree_on_keys(link)
    shares = torch.from_numpy(sketches.view(np.int64).copy())
    vectors = ArithmeticSharedTensor.from_shares(shares, precision=0)
    products = vectors.matmul(vectors.transpose(0, 1)).share
    first, second = torch.triu_indices(len(shares), len(shares), offset=1)
    squares = torch.diagonal(products)
    distances = squares[first] + squares[second] - 2 * products[first, second]
    room = -distances
    if link.rank == 0:  # a public number is added by one party
        room += threshold
    opened = MPCTensor.from_shares(room, precision=0)._ltz().get_plain_text()  # noqa: SLF001  # it has no public name
    if link.rank == 0:
        link.send(link.num_peers - 1, _END)
    bits: NDArray[np.int64] = opened.numpy()
    return bits


def _agree_on_keys(link: PartyLink) -> None:
    """Share a key with the previous party, one with the next, one with the dealer."""
    num_parties, dealer = link.num_peers - 1, link.num_peers - 1
    ttp_provider.TTPClient = _DealerClient(
        link, _Stream(link.receive_as(dealer, _KEY_KIND).tobytes())
    )
    key = os.urandom(KEY_SIZE)
    link.send((link.rank + 1) % num_parties, np.frombuffer(key, dtype=np.uint8))
    before = link.receive_as((link.rank - 1) % num_parties, _KEY_KIND).tobytes()
    crypten.generators["next"] = {_CPU: _Stream(key)}
    crypten.generators["prev"] = {_CPU: _Stream(before)}

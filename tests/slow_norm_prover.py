"""The norm proof's prover a second time: long integers and the formulas, nothing else.

It is written from the docstring of `protocol.modes.mpc.norm_proof` and shares no code
with the fast prover; where a program in another language differs from both, the vectors
decide. It has no scruples: rows may hold anything modulo r, and `lie` may change what
it says, so it is also the attacker of the tests.

Two groups: `PyEccGroup`, an implementation by others from hash-to-curve to compression,
and `FastGroup`, for when many proofs are needed.
"""

import hashlib
from functools import cache
from itertools import zip_longest
from operator import mul

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from py_arkworks_bls12381 import G1Point, Scalar

from protocol.modes.mpc.norm_proof import NormProof, NormStatement
from tests.oracle import Z1, add, compress_G1, double, hash_to_G1

R = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
K = 309
DOMAIN = b"folkmoot-commitments/v1 BLS12381G1_XMD:SHA-256_SSWU_RO_"


class FastGroup:
    @staticmethod
    @cache
    def hash(name):
        return G1Point.hash_to_curve(name, DOMAIN)

    @staticmethod
    def sum(points, scalars):
        return G1Point.multiexp_unchecked(
            list(points), [Scalar.from_le_bytes(to_bytes(s)) for s in scalars]
        )

    @staticmethod
    def encode(point):
        return bytes(point.to_compressed_bytes())


class PyEccGroup:
    @staticmethod
    @cache
    def hash(name):
        return hash_to_G1(name, DOMAIN, hashlib.sha256)

    @staticmethod
    def sum(points, scalars):
        """Pippenger's sums of products, 4 bits at a time."""
        total = Z1
        scalars = [scalar % R for scalar in scalars]
        for shift in range(252, -1, -4):
            for _ in range(4):
                total = double(total)
            buckets = [Z1] * 16
            for point, scalar in zip(points, scalars, strict=True):
                digit = scalar >> shift & 15
                if digit:
                    buckets[digit] = add(buckets[digit], point)
            running = Z1
            for bucket in reversed(buckets[1:]):
                running = add(running, bucket)
                total = add(total, running)
        return total

    @staticmethod
    def encode(point):
        return compress_G1(point).to_bytes(48, "big")


def to_bytes(scalar):
    return (scalar % R).to_bytes(32, "little")


def centre(value):
    """Return the representative modulo r that is nearest to zero."""
    value %= R
    return value if value < R // 2 else value - R


def dot(left, right):
    return sum(map(mul, left, right)) % R


def expand(seed, num_rows, row_length):
    """Return R_t,i,j for rows 1 to m+1, from the bits of a_t and b_t."""
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()

    def draw(count):
        data = stream.update(bytes(-(-count // 8)))
        return [byte >> place & 1 for byte in data for place in range(8)][:count]

    columns = [draw(row_length) for _ in range(K)]
    rows = [draw(num_rows + 1) for _ in range(K)]
    return [
        [[a * b for b in of_columns] for a in of_rows]
        for of_rows, of_columns in zip(rows, columns, strict=True)
    ]


class Messages:
    """Fiat and Shamir."""

    def __init__(self, domain):
        self.state = bytes(64)
        self.append(b"domain", domain)

    def append(self, label, data):
        parts = b"".join(len(p).to_bytes(8, "little") + p for p in (label, data))
        self.state = hashlib.sha512(self.state + b"\0" + parts).digest()

    def draw(self, label):
        part = len(label).to_bytes(8, "little") + label
        self.state = hashlib.sha512(self.state + b"\1" + part).digest()
        return self.state

    def challenge(self, label):
        return 1 + int.from_bytes(self.draw(label), "little") % (R - 1)


class SlowProver:
    """A prover of anything.

    Args:
        rows: m lists of at most n integers; what is missing is zero.
        squares: The four squares; not checked.
        masks: y, 309 integers; not checked.
        blindings: m + 3 integers.
        draw: Gives an integer modulo r at each call.
    """

    def __init__(
        self, *, context, num_values, row_length, squared_bound, rows, squares, masks,
        blindings, draw, group=FastGroup,
    ):  # fmt: skip
        self.group, self.draw, self.length = group, draw, row_length
        self.generators = [
            group.hash(b"G" + i.to_bytes(4, "big")) for i in range(row_length)
        ]
        self.h, self.u = group.hash(b"H"), group.hash(b"U")
        self.rows = [[*row] + [0] * (row_length - len(row)) for row in rows]
        self.squares = [*squares] + [0] * (row_length - len(squares))
        self.masks = [*masks] + [0] * (row_length - len(masks))
        self.blindings = blindings
        all_rows = [*self.rows, self.squares, self.masks]
        *commitments, squares, masks = (
            self.commit(row, blinding)
            for row, blinding in zip(all_rows, blindings[:-1], strict=True)
        )
        self.statement = NormStatement(
            context=context,
            num_values=num_values,
            row_length=row_length,
            squared_bound=squared_bound,
            rows=tuple(commitments),
            squares=squares,
            masks=masks,
        )

    def commit(self, vector, blinding):
        points = [*self.generators, self.h]
        return self.group.encode(self.group.sum(points, [*vector, blinding]))

    def start(self):
        """Return the messages so far, and the seed of the projection."""
        s = self.statement
        messages = Messages(b"folkmoot-norm-proof/v1\n")
        messages.append(b"context", s.context)
        numbers = (s.num_values, s.row_length, len(s.rows), s.squared_bound)
        shape = b"".join(number.to_bytes(8, "little") for number in numbers)
        messages.append(b"shape", shape)
        messages.append(b"commitments", b"".join((*s.rows, s.squares, s.masks)))
        return messages, messages.draw(b"projection")[:32]

    def expand(self):
        """Return the projection that the statement gives."""
        return expand(self.start()[1], len(self.rows), self.length)

    def project(self, bits):
        """Return w modulo r, the representatives nearest to zero."""
        return [
            centre(y + sum(dot(a, b) for a, b in zip(rows, self.bound, strict=True)))
            for rows, y in zip(bits, self.masks, strict=False)
        ]

    @property
    def bound(self):
        """x', what the bound is about."""
        return [*self.rows, self.squares]

    def prove(self, lie=None, nonces=None):
        """Return a proof.

        Args:
            lie: Given w, returns what is said instead.
            nonces: μ, ν, the blinding of ν, and one t_l for each T_l; drawn otherwise.
        """
        m, n = len(self.rows), self.length
        last = m + 2
        messages, seed = self.start()
        bits = expand(seed, m, n)
        w = self.project(bits)
        w = lie(w) if lie else w
        limit = 1 << 119  # what doesn't fit its 15 bytes can't be said
        w = [max(-limit, min(limit - 1, value)) for value in w]
        said = b"".join(value.to_bytes(15, "little", signed=True) for value in w)
        messages.append(b"projections", said)
        rho, alpha = messages.challenge(b"rho"), messages.challenge(b"alpha")
        powers = [pow(rho, t, R) for t in range(K)]
        lambdas = [
            [dot(powers, (bits[t][i][j] for t in range(K))) for j in range(n)]
            for i in range(m + 1)
        ] + [powers + [0] * (n - K)]

        mu, nu, nu_blinding, blindings = nonces or (
            [self.draw() for _ in range(n)],
            [self.draw() for _ in range(n)],
            self.draw(),
            [self.draw() for _ in range(3 * last)],
        )
        rows = [*self.bound, self.masks]
        z = {0: mu} | dict(enumerate(rows, start=1))
        z_prime = {last + 1: nu} | {-i: z[i] for i in range(1, last)}
        known = {-i: row for i, row in enumerate(lambdas, start=1)}
        polynomial = dict.fromkeys(range(-last, 2 * last + 2), 0)
        for i, left in z.items():
            for j, right in z_prime.items():
                polynomial[i + j] += dot(left, right)
            for j, right in known.items():
                polynomial[i + j] += alpha * dot(left, right)
        assert polynomial.pop(last) == 0
        del polynomial[0]
        points = [
            self.group.encode(self.group.sum([self.u, self.h], [p, t]))
            for p, t in zip(polynomial.values(), blindings, strict=True)
        ]
        z_mask = self.commit(mu, self.blindings[-1])
        z_prime_mask = self.commit(nu, nu_blinding)
        messages.append(b"points", b"".join((z_mask, z_prime_mask, *points)))
        e = messages.challenge(b"e")

        def evaluate(vectors):
            factors = [pow(e, i, R) for i in vectors]
            columns = zip_longest(*vectors.values(), fillvalue=0)
            return [dot(factors, column) for column in columns]

        of_rows = dict(enumerate(([s] for s in self.blindings[:-1]), start=1))
        of_nu = {-i: of_rows[i] for i in range(1, last)} | {last + 1: [nu_blinding]}
        of_relation = {i: [t] for i, t in zip(polynomial, blindings, strict=True)}
        (z_blinding,) = evaluate({0: [self.blindings[-1]]} | of_rows)
        (z_prime_blinding,) = evaluate(of_nu)
        (relation_blinding,) = evaluate(of_relation)
        return NormProof(
            projections=said,
            z_mask=z_mask,
            z_prime_mask=z_prime_mask,
            coefficients=tuple(points),
            z=b"".join(map(to_bytes, evaluate(z))),
            z_prime=b"".join(map(to_bytes, evaluate(z_prime))),
            z_blinding=to_bytes(z_blinding),
            z_prime_blinding=to_bytes(z_prime_blinding),
            relation_blinding=to_bytes(relation_blinding),
        )

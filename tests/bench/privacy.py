"""`moot bench privacy`: what it costs that nobody sees an update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.bench import privacy_rounds as whole
from tests.bench import privacy_steps as steps
from tests.bench.privacy_rounds import Rounds, Size, measure_rounds
from tests.bench.privacy_steps import NUM_PARTIES, Found, measure_alone
from tests.bench.report import Section, Table, count_cores, show, show_target

if TYPE_CHECKING:
    from tests.bench.federation import Say

#: Length of an update, and agents that really commit and prove.
SIZES: Final = ((100_000, 10), (1_000_000, 4))
QUICK_SIZES: Final = ((1_000, 3),)
HOPS_SIZE: Final = Size(10, 1_000, 3)
"""Rounds in which next to nothing is computed: what is left is waiting for others."""
TARGET_SIZE: Final = (10, 100_000)
ROUND_SIZES: Final = (
    HOPS_SIZE,
    Size(*TARGET_SIZE, 3),
    Size(10, 1_000_000, 1, is_warm=False),
    Size(100, 100_000, 1, is_warm=False),
)
QUICK_ROUND_SIZES: Final = (Size(3, 1_000, 1),)
LARGEST_COHORT: Final = max(steps.COHORTS)
TARGETS: Final = {
    100_000: {
        steps.COMMIT: 0.75,
        steps.PROVE: 0.5,
        steps.VERIFY: 0.13,
        steps.VERIFY_BATCH: 0.085,
    },
    1_000_000: {
        steps.COMMIT: 5.5,
        steps.PROVE: 3.3,
        steps.VERIFY: 0.9,
        steps.sum_seeds(LARGEST_COHORT): 1.0,
        steps.sum_full(LARGEST_COHORT): 1.0,
    },
}
"""Processor seconds, one thread."""
MAX_RATIO: Final = 1.5
MEGA: Final = 1e6


def run(say: Say, *, quick: bool) -> Section:
    """Measure, and say what was found."""
    found = []
    for num_values, num_agents in QUICK_SIZES if quick else SIZES:
        say(f"steps for {num_values:,} parameters, {num_agents} agents")
        found.append(measure_alone(num_values, num_agents))
    rounds = measure_rounds(QUICK_ROUND_SIZES if quick else ROUND_SIZES, say)
    return report(found, rounds)


@dataclass(frozen=True, slots=True)
class Path:
    """The longest way through a round if everybody had a machine of their own.

    Computed: the pieces are measured, their sum is not.

    Attributes:
        agent_s: Encode, commit, share, seal; then prove.
        party_s: Verify all proofs, link all shares, later add them up.
        opener_s: Verify the parties' sums, combine the commitments, open.
        hops_s: Waiting for others, as in rounds in which little is computed.
    """

    agent_s: float
    party_s: float
    opener_s: float
    hops_s: float

    @classmethod
    def compute(cls, found: Found, count: int, hops_s: float) -> Path:
        """Add the steps of a round of so many agents up."""

        def took(*names: str) -> float:
            return sum(found.steps[name].seconds for name in names)

        verify_and_link = max(
            took(steps.VERIFY_BATCH, link)
            for link in (steps.LINK_SEED, steps.LINK_FULL)
        )
        return cls(
            agent_s=took(
                steps.ENCODE,
                steps.COMMIT,
                steps.SHARE,
                steps.SEAL,
                steps.PROVE,
            ),
            party_s=(
                took(steps.EXPAND)
                + count * verify_and_link
                + max(took(steps.sum_seeds(count)), took(steps.sum_full(count)))
            ),
            opener_s=(
                count * took(steps.VERIFY_LINKS)
                + took(
                    steps.verify_sums(count),
                    steps.combine(count),
                    steps.open_sum(count),
                )
            ),
            hops_s=hops_s,
        )

    @property
    def total_s(self) -> float:
        """All of it, one after the other."""
        return self.agent_s + self.party_s + self.opener_s + self.hops_s


def report(found: Sequence[Found], rounds: Sequence[Rounds]) -> Section:
    """Say what was found."""
    parts: list[str | Table] = [
        f"""\
Aggregation MPC with {NUM_PARTIES} parties. First step by step: milliseconds of
processor time in a process of its own without I/O, with one thread (BLAS is told so
before it is loaded; this thread took {min(item.one_thread for item in found):.1%} of
the process's time). Medians, for one agent or one party unless a name says else. Values
are normally distributed, as long as the norm bound lets a million of them be. Every
agent that is named *different* has an update, commitments, a proof and shares of its
own; cohorts of {" and ".join(map(str, steps.COHORTS))} take them several times: the
work is the same, but for caches."""
    ]
    for item in found:
        parts += _report_steps(item)
    parts += [
        """\
**Limit**: the library alone, for the same sizes, in the same run. *commit*: one
multiplication of as many points as there are values, by short scalars. *prove*: two of
a row's points by long scalars, and the largest product of matrices in BLAS. *verify*,
*combine*, *open*: decoding what was received, tests of the subgroup included, and the
multiplications. *share*, *expand*: the stream of AES-256 alone; *seal*: AES-256-GCM
alone. *link*, *verify sums*: the product with the projection in BLAS. *sum*: opening
what is sealed (seeds: the stream), and numpy adding the arrays.""",
        "What travels for one update, in bytes, events left out:",
        _report_sizes(found),
    ]
    parts += _report_rounds(found, rounds)
    parts.append(
        """\
**Next**: a party verifies every proof itself, by design, but only once all are there;
it could do so while other agents still train, as the aggregator does. The aggregator
decodes commitments to verify proofs, and once more to combine them."""
    )
    return Section(
        "privacy", "Privacy: what it costs that nobody sees an update", tuple(parts)
    )


def _report_steps(found: Found) -> list[str | Table]:
    targets = TARGETS.get(found.num_values, {})
    rows = []
    for name, step in found.steps.items():
        target = targets.get(name)
        limit = step.limit_s
        rows.append(
            (
                name,
                show(1_000 * step.seconds),
                "" if target is None else f"{1_000 * target:,.0f}",
                "" if target is None else _judge(step.seconds, target),
                "" if limit is None else show(1_000 * limit),
                "" if not limit else f"{step.seconds / limit:.1f}×",
            )
        )
    missed = [n for n, target in targets.items() if found.steps[n].seconds > target]
    verdict = f"MISSED: {', '.join(missed)}" if missed else "all met"
    intro = f"""\
**{found.num_values:,} parameters**, {found.num_agents} different agents; batches of
proofs are these {found.num_agents}. numpy alone adds {LARGEST_COHORT} arrays in
{show(1_000 * found.add_s)} ms."""
    if targets:
        intro += f" **Targets** of steps: {verdict}."
    headings = ("", "ms", "target", "", "limit, ms", "of limit")
    return [intro, Table(headings, tuple(rows))]


def _judge(value: float, target: float) -> str:
    return "met" if value <= target else "MISSED"


def _report_sizes(found: Sequence[Found]) -> Table:
    rows = [
        (name, *(f"{item.sizes[name]:,}" for item in found)) for name in found[0].sizes
    ]
    seeds = f"**an agent sends** (seed shares: {NUM_PARTIES - 1})"
    rows.append((seeds, *(f"{item.sent_bytes:,}" for item in found)))
    ratios = (item.sent_bytes / item.sizes["update of PLAIN"] for item in found)
    rows.append(("to PLAIN", *(f"{ratio:.2f}×" for ratio in ratios)))
    headings = ("", *(f"{item.num_values:,} parameters" for item in found))
    return Table(headings, tuple(rows))


def _report_rounds(
    found: Sequence[Found], rounds: Sequence[Rounds]
) -> list[str | Table]:
    cores = count_cores()
    parts: list[str | Table] = [
        f"""\
Whole rounds, on the ledger from `RoundStarted` to `AggregatePublished`, training
excluded, committing and proving included; PLAIN on the same stack in the same run. All
agents ({cores} at a time), parties, services, Kafka and MinIO share {cores} cores here.
Seconds; medians, after a warm-up unless it says that there was none.""",
        Table(
            ("agents × parameters", "rounds", "PLAIN", "MPC", "MPC / PLAIN"),
            tuple(
                (
                    _name(item.size),
                    f"{item.size.num_rounds}{_note_warm_up(item.size)}",
                    show(item.plain_s),
                    show(item.mpc_s),
                    f"{item.mpc_s / item.plain_s:.1f}×",
                )
                for item in rounds
            ),
        ),
    ]
    judged = [r for r in rounds if _shape(r.size) == TARGET_SIZE]
    for item in judged:
        ratio = item.mpc_s / item.plain_s
        unit = f"times PLAIN for {_name(item.size)}"
        target = show_target(ratio, MAX_RATIO, unit)
        parts.append(target)
        if ratio > MAX_RATIO:
            parts.append(_explain(item, min(rounds, key=lambda r: r.mpc_s), cores))
    parts += [
        "Where a round's processor time goes, in seconds, Kafka and MinIO left out:",
        _report_cpu(rounds, cores),
    ]
    return parts + _report_paths(found, rounds)


def _explain(item: Rounds, least: Rounds, cores: int) -> str:
    """Say by arithmetic why a round takes so long."""
    agents = item.cpu_s[whole.COMMIT]
    others = sum(item.cpu_s.values()) - agents
    allowed = MAX_RATIO * item.plain_s
    return f"""\
**Why**: the target allows {show(allowed)} s. The agents' committing and proving alone
take {show(agents)} s of processor time, all others {show(others)} s: on {cores} cores
together that is {show((agents + others) / cores)} s at the least, without Kafka, MinIO
and a moment of waiting. And there is more to wait for: once the agents have spoken,
every party speaks twice, where with PLAIN nobody does. A round
of {_name(least.size)}, with little to compute, takes {show(least.mpc_s)} s, and
{show(least.plain_s)} s with PLAIN."""


def _report_cpu(rounds: Sequence[Rounds], cores: int) -> Table:
    names = list(rounds[0].cpu_s)
    rows = tuple(
        (
            _name(item.size),
            *(show(item.cpu_s[name]) for name in names),
            show(sum(item.cpu_s.values())),
            show(sum(item.cpu_s.values()) / cores),
        )
        for item in rounds
    )
    return Table(("agents × parameters", *names, "all", f"all / {cores} cores"), rows)


def _report_paths(
    found: Sequence[Found], rounds: Sequence[Rounds]
) -> list[str | Table]:
    by_size = {item.num_values: item for item in found}
    hops_s = min(item.mpc_s for item in rounds)
    rows = []
    for item in rounds:
        known = by_size.get(item.size.num_values)
        if known is None or item.size.num_agents not in steps.COHORTS:
            continue
        path = Path.compute(known, item.size.num_agents, hops_s)
        rows.append(
            (
                _name(item.size),
                show(path.agent_s),
                show(path.party_s),
                show(path.opener_s),
                show(path.hops_s),
                show(path.total_s),
                f"{path.total_s / item.plain_s:.1f}×",
            )
        )
    if not rows:
        return []
    least = min(rounds, key=lambda item: item.mpc_s).size
    return [
        f"""\
**Computed, not measured**: the longest way through a round if every agent, every party
and the aggregator had a machine of its own and one thread. It adds up the steps above:
one agent commits, shares, seals and proves; one party verifies all proofs, links all
shares and later adds them up; one opener verifies {NUM_PARTIES} sums, combines and
opens. *hops* is a measured round of {_name(least)}, in which little is computed.
Transfers are left out. Seconds, and times the PLAIN round that was measured on this
machine:""",
        Table.under(
            "agents × parameters | an agent | a party | "
            "the opener | hops | computed | to PLAIN",
            rows,
        ),
    ]


def _note_warm_up(size: Size) -> str:
    return "" if size.is_warm else ", no warm-up"


def _shape(size: Size) -> tuple[int, int]:
    return size.num_agents, size.num_values


def _name(size: Size) -> str:
    return f"{size.num_agents} × {size.num_values:,}"

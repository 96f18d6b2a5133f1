"""`moot bench privacy`: what it costs that nobody sees an update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tests.bench import privacy_steps as steps
from tests.bench.privacy_rounds import Rounds, Size, measure_rounds
from tests.bench.privacy_steps import NUM_PARTIES, Found, measure_alone
from tests.bench.report import count_cores, make_table, name_size, show, show_target

if TYPE_CHECKING:
    from tests.bench.federation import Say

#: Length of an update, and agents that really commit and prove.
SIZES: Final = ((100_000, 10), (1_000_000, 4))
QUICK_SIZES: Final = ((1_000, 3),)
HOPS_SIZE: Final = Size(10, 1_000, 3)
"""Rounds in which next to nothing is computed: what is left is waiting for others."""
TARGET_SIZE: Final = Size(10, 100_000, 3)
ROUND_SIZES: Final = (
    HOPS_SIZE,
    TARGET_SIZE,
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
        steps.SUM_SEEDS.format(LARGEST_COHORT): 1.0,
        steps.SUM_FULL.format(LARGEST_COHORT): 1.0,
    },
}
"""Processor seconds, one thread."""
MAX_RATIO: Final = 1.5


def run(say: Say, *, quick: bool) -> Sequence[str]:
    """Measure, and return what was found."""
    found = []
    for num_values, num_agents in QUICK_SIZES if quick else SIZES:
        say(f"steps for {num_values:,} parameters, {num_agents} agents")
        found.append(measure_alone(num_values, num_agents))
    rounds = measure_rounds(QUICK_ROUND_SIZES if quick else ROUND_SIZES, say)
    return report(found, rounds)


def report(found: Sequence[Found], rounds: Sequence[Rounds]) -> Sequence[str]:
    """Say what was found."""
    cores = count_cores()
    parts = [part for item in found for part in _report_steps(item)]
    parts += [
        "**What travels** for one update, bytes:",
        _report_sizes(found),
        "**Whole rounds**, s:",
        make_table(
            {
                **name_size(item.size.num_agents, item.size.num_values),
                "rounds": f"{item.size.num_rounds}"
                + ("" if item.size.is_warm else ", no warm-up"),
                "PLAIN": item.plain_s,
                "MPC": item.mpc_s,
                "MPC / PLAIN": f"{item.mpc_s / item.plain_s:.1f}×",
            }
            for item in rounds
        ),
        *(
            show_target(item.mpc_s / item.plain_s, MAX_RATIO, "times PLAIN")
            for item in rounds
            if item.size == TARGET_SIZE
        ),
        "**Processor time of a round**, s:",
        make_table(
            {
                **name_size(item.size.num_agents, item.size.num_values),
                **item.cpu_s,
                "all": sum(item.cpu_s.values()),
                f"all / {cores} cores": sum(item.cpu_s.values()) / cores,
                "the target allows": MAX_RATIO * item.plain_s,
            }
            for item in rounds
        ),
    ]
    if paths := _report_paths(found, rounds):
        parts += ["**Computed, not measured**, s:", make_table(paths)]
    return parts


def _report_steps(found: Found) -> Sequence[str]:
    targets = TARGETS.get(found.num_values, {})
    rows = []
    for name, seconds in found.seconds.items():
        target, limit = targets.get(name), found.limits.get(name)
        rows.append(
            {
                "step": name,
                "ms": 1_000 * seconds,
                "target": target and f"{1_000 * target:,.0f}",
                "": target and ("met" if seconds <= target else "MISSED"),
                "limit, ms": limit and 1_000 * limit,
                "of limit": limit and f"{seconds / limit:.1f}×",
            }
        )
    about = (
        f"**{found.num_values:,} parameters**, {found.num_agents} different agents, "
        f"whose proofs are a batch; one thread took {found.one_thread:.1%} of the "
        f"process's time. numpy alone adds {LARGEST_COHORT} arrays in "
        f"{show(1_000 * found.add_s)} ms."
    )
    return about, make_table(rows)


def _report_sizes(found: Sequence[Found]) -> str:
    sent = {item.num_values: count_sent_bytes(item.sizes) for item in found}
    rows: dict[str, dict[str, object]] = {
        name: {f"{item.num_values:,} parameters": item.sizes[name] for item in found}
        for name in found[0].sizes
    }
    rows[f"**an agent sends** (seed shares: {NUM_PARTIES - 1})"] = {
        str(size): num_bytes for size, num_bytes in sent.items()
    }
    rows["to PLAIN"] = {
        str(item.num_values): (
            f"{sent[item.num_values] / item.sizes['update of PLAIN']:.2f}×"
        )
        for item in found
    }
    return make_table({"": name, **row} for name, row in rows.items())


def count_sent_bytes(sizes: dict[str, int]) -> int:
    """Return what an agent stores for one update, events left out."""
    return (
        sizes["commitments"]
        + sizes["norm proof"]
        + (NUM_PARTIES - 1) * sizes["sealed seed share"]
        + sizes["sealed full share"]
    )


def compute_path(found: Found, count: int, hops_s: float) -> dict[str, float]:
    """Return the longest way through a round if everybody had a machine of their own.

    The pieces are measured, their sum is not.

    Args:
        found: The steps.
        count: Agents in the round.
        hops_s: A round in which little is computed.
    """

    def took(*names: str) -> float:
        return sum(found.seconds[name.format(count)] for name in names)

    agent_s = took(steps.ENCODE, steps.COMMIT, steps.SHARE, steps.SEAL, steps.PROVE)
    verify_and_link = took(steps.VERIFY_BATCH) + max(
        took(steps.LINK_SEED), took(steps.LINK_FULL)
    )
    add_s = max(took(steps.SUM_SEEDS), took(steps.SUM_FULL))
    party_s = took(steps.EXPAND) + count * verify_and_link + add_s
    opener_s = count * took(steps.VERIFY_LINKS) + took(
        steps.VERIFY_SUMS, steps.COMBINE, steps.OPEN_SUM
    )
    return {
        "an agent": agent_s,
        "a party": party_s,
        "the opener": opener_s,
        "hops": hops_s,
        "computed": agent_s + party_s + opener_s + hops_s,
    }


def _report_paths(
    found: Sequence[Found], rounds: Sequence[Rounds]
) -> Sequence[dict[str, object]]:
    by_size = {item.num_values: item for item in found}
    hops_s = min(item.mpc_s for item in rounds)
    rows = []
    for item in rounds:
        num_agents, num_values = item.size.num_agents, item.size.num_values
        if num_values in by_size and num_agents in steps.COHORTS:
            path = compute_path(by_size[num_values], num_agents, hops_s)
            to_plain = {"to PLAIN": f"{path['computed'] / item.plain_s:.1f}×"}
            rows.append({**name_size(num_agents, num_values), **path, **to_plain})
    return rows

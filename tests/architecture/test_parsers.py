"""Every parser of strangers' bytes is fuzzed, or says why not."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

import pytest

from tests.architecture.parsers import find_parsers

OWN: Final = "reads what this machine wrote, or what its operator types"
HANDS_ON: Final = "hands on to parsers that are fuzzed, and takes nothing apart itself"
OURS: Final = "makes values of random bytes, or of seeds that are 32 bytes by schema"

EXEMPT: Final = {
    # The command line: the local stack, an operator's arguments.
    "cli/stack/fetch.py": OWN,
    "cli/stack/backends.py": OWN,
    "cli/stack/stack.py": OWN,
    "cli/stack/processes.py": OWN,
    "cli/baselines.py": OWN,
    "cli/demo.py": OWN,
    "cli/stack/fork_server.py": OWN,
    "cli/stack/services.py:run_agent": OWN,
    "cli/stack/services.py:_parse_modes": OWN,
    "cli/stack/services.py:_take_place": OWN,
    "cli/names.py": OWN,
    # What is only compared, or shown.
    "adapters/durable.py:describe_holder": "the kernel's own table, shown escaped",
    "cli/federations.py:list_federations": "keys, shown only if they are names",
    "cli/modes/mpc.py:read_parameters": OWN,
    "cli/options.py:parse_config": OWN,
    "cli/options.py:parse_principals": OWN,
    "cli/options.py:parse_key": OWN,
    "cli/commands/receipt.py:verify_receipt": HANDS_ON,
    "cli/operate.py": HANDS_ON,
    "cli/strategies.py": OWN,
    "cli/task_check.py": OWN,
    "cli/node.py:read_": HANDS_ON,
    "cli/audit.py": HANDS_ON,
    "cli/status.py": HANDS_ON,
    "cli/stack/supervise.py:Federations.find": HANDS_ON,
    "cli/stack/supervise.py:find_services": OWN,
    "cli/curves.py:_write": "writes text, escaped",
    "cli/model.py:write_csv": "writes what `evaluate` measured",
    "cli/audit_show.py:fold": "folds lines that `printable` wrote",
    # Blobs and proofs of MPC rounds.
    "protocol/modes/mpc/checker.py": HANDS_ON,
    "consumers/audit/modes/second_opinion.py:sample_rows": OURS,
    "streams/checking.py:make_check": HANDS_ON,
    "protocol/round_view.py:_decode": "decodes what it has encoded",
    "protocol/clipping.py:clip_and_encode": OURS,
    "protocol/modes/mpc/commitments.py:_commit_small": OURS,
    "protocol/modes/mpc/norm_prover.py": OURS,
    "protocol/modes/mpc/share_link.py:SumMasks": OURS,
    "protocol/modes/mpc/shares.py:split_update": OURS,
    "protocol/modes/mpc/sketches.py": OURS,
    "streams/mpc/crypten_link.py": "takes frames of known size and type off the link",
    "streams/mpc/robustness.py:_demand_same": "takes a frame of known size",
    # Kafka's records, once they are unpacked.
    "protocol/log.py:read_block": HANDS_ON,
    "adapters/kafka_log.py:read_log": HANDS_ON,
    "adapters/kafka.py:read_partition": HANDS_ON,
    "streams/following.py": HANDS_ON,
    "streams/sequencer.py": HANDS_ON,
    "producers/timer.py:Timer._announce_final": HANDS_ON,
    "consumers/audit/records.py:RecordAuditor.open_item": HANDS_ON,
    "consumers/node/kafka.py": HANDS_ON,
    "consumers/node/service.py:NodeService._unframe_refused": HANDS_ON,
    "adapters/partitions.py:murmur2": "hashes bytes, whatever they are",
    "adapters/topic_config.py:_read_configs": "reads a broker's answers",
    # HTTP and TLS.
    "consumers/node/peers.py:PeerPuller._take_part": HANDS_ON,
    "adapters/modes/mpc/link.py:_identify": "a certificate that OpenSSL has verified",
    "adapters/modes/mpc/link.py:_Certificate.make_context": OWN,
    # What a process keeps for itself.
    "adapters/attempts.py": OWN,
    "adapters/block_store.py": OWN,
    "adapters/genesis.py:remember_genesis": OWN,
    "adapters/keys.py:load_": OWN,
    "adapters/names.py": OWN,
    "adapters/modes/mpc/identity.py:load_party": OWN,
    "adapters/vote_log.py:load_identity": OWN,
    "adapters/vote_log.py:_load": OWN,
    "producers/control.py:load_principals": OWN,
    "producers/agent/agent.py": OWN,
    "producers/agent/directory.py": OWN,
    "producers/agent/terms.py:Terms._read_accepted": OWN,
    "producers/agent/kept_update.py": OWN,
    "schemas/codec.py:lock": "reads a file of this package",
    "schemas/codec.py:_names_by_fingerprint": "reads a file of this package",
    "consumers/audit/parallel.py:_load": "a pickle of the parent process, by a pipe",
    "consumers/audit/state.py:_to_json": OWN,
    "consumers/node/ledger_node.py:LedgerNode._resume": OWN,
    "consumers/node/ledger_node.py:LedgerNode._publish_cosigned": OWN,
    # Models of ours, and configurations that admission has judged.
    "consumers/export/artifacts.py:_runner": "runs the model that it has just exported",
    "consumers/export/apart.py": "JSON that admission has judged, or its child's",
    # What users' code returned.
    "adapters/numbers.py": "bounds any object, and decodes none",
    "consumers/export/metrics.py": "names and numbers that a module logged, bounded",
}
"""By the beginning of a function's path and name, why it is not fuzzed."""


@pytest.fixture(scope="module")
def reached() -> frozenset[str]:
    """What is called while all parsers read their seeds: in a process of its own, for
    what is remembered from other tests would not be called again.
    """
    command = [sys.executable, "-m", "tests.architecture.parsers"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return frozenset(json.loads(done.stdout))


def test_every_parser_is_fuzzed_or_exempt(reached: frozenset[str]) -> None:
    forgotten = [
        name
        for name in find_parsers()
        if name not in reached and not name.startswith(tuple(EXEMPT))
    ]
    assert not forgotten, "add them to tests/fuzz/targets.py, or say why not"


def test_no_exemption_is_out_of_date(reached: frozenset[str]) -> None:
    unreached = set(find_parsers()) - reached
    stale = [
        beginning
        for beginning in EXEMPT
        if not any(name.startswith(beginning) for name in unreached)
    ]
    assert not stale


def test_parsers_are_found_by_what_they_do_and_by_what_they_are_called() -> None:
    found = set(find_parsers())
    assert {
        "adapters/raw_records.py:Batch.__init__",  # struct
        "adapters/peers.py:_parse_tip",  # a regular expression, and hex
        "protocol/encoding.py:parse_update",  # its name
        "schemas/codec.py:decode",
        "consumers/node/http.py:NodeServer._get",  # a request
    } <= found
    assert "ledger/merkle.py:node_hash" not in found

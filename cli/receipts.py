"""Receipts on the command line: fetch one, verify one offline."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from adapters.kafka_log import read_log
from adapters.log_client import LogUnavailableError, NotFinalYetError, fetch_receipt
from adapters.settings import Settings
from cli.describe import describe, to_jsonable
from cli.federations import make_no_federation
from cli.operate import make_registry
from cli.show import say, say_json, show_time
from cli.stack.processes import StackError, read_at_most
from ledger.checkpoint import compute_origin
from ledger.merkle import InvalidProofError
from ledger.note import InvalidNoteError
from ledger.policy import (
    MAX_POLICY_SIZE_BYTES,
    InvalidPolicyError,
    Policy,
    parse_policy,
)
from ledger.proof_file import (
    MAX_PROOF_FILE_SIZE_BYTES,
    InvalidProofFileError,
    verify_receipt,
)
from protocol.admission import (
    AdmissionState,
    compute_event_id,
    make_policy,
)
from protocol.log import fold_admission
from schemas import codec
from schemas import events as e

WAIT_S = 10.0


def show_policy(settings: Settings, federation_id: str, era: int | None = None) -> str:
    """Return a federation's policy file for an era, the present one by default: whose
    cosignatures make a checkpoint final.

    Raises:
        StackError: there is no such federation or era, or it has no ledger nodes.
    """
    from cli.node import read_admission

    state = read_admission(settings, federation_id)
    _demand_nodes(state)
    present = state.node_sets[-1].era
    era = present if era is None else era
    if not 0 <= era <= present:
        msg = f"{federation_id!r} has no era {era}: the present one is {present}"
        raise StackError(msg, "`moot node list` shows them all.")
    when = "the present one" if era == present else f"the present one is {present}"
    # A change names the next era: they are numbered without gaps.
    policy = make_policy(replace(state, node_sets=state.node_sets[: era + 1]))
    return f"# {federation_id}, era {era}: {when}\n{policy.to_text()}"


def get_receipt(
    settings: Settings, federation_id: str, event_id: str, urls: tuple[str, ...]
) -> tuple[int, bytes]:
    """Return the leaf index and receipt of an event, given by its id in hex or its leaf
    index; from its ledger nodes unless servers are named.

    Raises:
        StackError: no such leaf, no server has it, or it is not final within `WAIT_S`.
    """
    state, found = AdmissionState(), None
    for read in read_log(settings, make_registry(settings), federation_id):
        state = fold_admission(state, read.leaves)
        for item in read.leaves:
            if event_id in {
                str(item.sequenced.leaf_index),
                compute_event_id(state, item.leaf, item.sequenced.event).hex(),
            }:
                found = item
    if not state.federation_id:
        raise make_no_federation(settings, federation_id)
    if found is None:
        msg = f"federation {federation_id!r} has no event {event_id}"
        raise StackError(msg, "`moot round watch --json` shows leaves and ids.")
    _demand_nodes(state)
    policy, origin = make_policy(state), compute_origin(federation_id, state.genesis)
    urls = urls or tuple(n.url for n in state.node_sets[-1].nodes if n.url)
    leaf_index, leaf = found.sequenced.leaf_index, codec.encode(found.leaf)
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return leaf_index, fetch_receipt(urls, policy, origin, leaf_index, leaf)
        except NotFinalYetError as error:
            if time.monotonic() > deadline:
                msg = f"leaf {leaf_index} is not final: {error}"
                raise StackError(
                    msg, "Enough ledger nodes must be up; try again later."
                ) from None
            time.sleep(0.5)
        except LogUnavailableError as error:
            msg = f"no receipt for leaf {leaf_index}: {error}"
            raise StackError(msg, "Name another server of the log: --url.") from None


def check_receipt(receipt: Path, policy_path: Path, *, as_json: bool) -> int:
    """Verify a receipt offline and print what it says; returns an exit code."""
    try:
        policy = _load_policy(policy_path)
        verified = verify_receipt(
            read_at_most(receipt, MAX_PROOF_FILE_SIZE_BYTES), policy
        )
        leaf = codec.decode_as(e.Leaf, verified.leaf)
        event = codec.decode(leaf.event)
    except OSError as error:
        msg = f"cannot read {error.filename}: {error.strerror}"
        raise StackError(
            msg, "Name the receipt, and the policy with --policy."
        ) from None
    except (
        InvalidProofFileError,
        InvalidNoteError,
        InvalidProofError,
        codec.CodecError,
    ) as error:
        if as_json:
            say_json({"is_valid": False, "problem": str(error)})
        else:
            say(f"NOT VALID: {error}")
        return 1
    checkpoint = verified.verified.checkpoint
    cosigned = {s.key.name: s.timestamp_s for s in verified.verified.cosignatures}
    if as_json:
        content = {
            "is_valid": True,
            "origin": checkpoint.origin,
            "leaf_index": verified.leaf_index,
            "tree_size": checkpoint.size,
            "root": checkpoint.root.hex(),
            "cosignatures": cosigned,
            "event": type(event).__name__,
            **to_jsonable(event),
        }
        say_json(content)
        return 0
    say(f"valid: leaf {verified.leaf_index} of {checkpoint.origin}")
    say(f"  says         {describe(event)}")  # type: ignore[arg-type]  # what leaves hold
    say(f"  checkpoint   size {checkpoint.size}, root {checkpoint.root.hex()}")
    for name, timestamp_s in cosigned.items():
        when = show_time(timestamp_s or 0)
        say(f"  cosigned by  {name} at {when}Z")
    return 0


def _load_policy(path: Path) -> Policy:
    try:
        return parse_policy(read_at_most(path, MAX_POLICY_SIZE_BYTES))
    except InvalidPolicyError as error:
        msg = f"{path} is not a policy: {error}"
        raise StackError(msg, "`moot node policy` writes one.") from None


def _demand_nodes(state: AdmissionState) -> None:
    if not state.node_sets:
        msg = f"federation {state.federation_id!r} has no ledger nodes"
        raise StackError(
            msg, "Nothing becomes final without them: `moot federation create --help`."
        )

"""`moot audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.environment import load_environment
from cli.options import AsJson, OperatorKey, OptionalFederation


def audit(
    bundle_to_read: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="A bundle to audit offline."),
    ] = None,
    federation: OptionalFederation = None,
    operator_key: OperatorKey = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="C2SP policy file: the cosignatures you demand."),
    ] = None,
    blobs: Annotated[
        bool, typer.Option(help="Fetch blobs and recompute every aggregate.")
    ] = True,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="List refused records.")
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Write everything read to this file, as a bundle."),
    ] = None,
    continue_from: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Continue from where an audit ended, as saved by --save."
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Save where this audit ends, if the log is sound."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Keep running and print alerts.")
    ] = False,
    stale_after: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds without a new final block or a successful read before a "
            "monitor alerts; default 300, 0 for never.",
        ),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Keep following after a fork.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Number of processes; one per core by default."),
    ] = None,
    second_opinion: Annotated[
        bool,
        typer.Option(
            "--second-opinion",
            help="Open rows of every sum again with another library, py-ecc.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Replay a log and check everything in it.

    Exit codes: 0 sound; 1 not sound (it says where); 2 unreadable; 3 unknown rules.
    """
    from cli.audit import Options
    from cli.audit import audit as run_audit

    load_environment()
    run_audit(
        Options(
            federation=federation or "",
            bundle=bundle_to_read,
            operator_key=operator_key,
            policy=policy,
            with_blobs=blobs,
            lists_refused=rejected,
            write_bundle=bundle,
            continue_from=continue_from,
            save=save,
            is_followed=follow,
            stale_after_s=stale_after,
            keeps_going=keep_going,
            as_json=as_json,
            second_opinion=second_opinion,
            jobs=jobs,
        )
    )

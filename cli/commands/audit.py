"""`moot audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.environment import load_environment
from cli.options import AsJson, OperatorKey


def audit(
    bundle_to_read: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="A bundle, to be audited offline."),
    ] = None,
    federation: Annotated[
        str, typer.Option("--federation", "-f", help="Name of the federation.")
    ] = "",
    operator_key: OperatorKey = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Whose cosignatures you demand: a C2SP policy file."),
    ] = None,
    blobs: Annotated[
        bool, typer.Option(help="Fetch blobs and recompute every aggregate.")
    ] = True,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="List the records that were refused.")
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Write everything that was read into a file, as a bundle."),
    ] = None,
    continue_from: Annotated[
        Path | None,
        typer.Option("--from", help="Go on from where an audit ended (--save)."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Save where this audit ends, if it is sound.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on as a monitor; prints alerts.")
    ] = False,
    stale_after: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds until a monitor complains that nothing becomes final, or "
            "that nothing can be read; 300 unless told otherwise, 0: never.",
        ),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Do not end after a fork.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; as many as there are cores."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay a log and check everything in it.

    Exit code 0: sound. 1: the log is wrong, and where. 2: it could not be read.
    """
    from cli.audit import Options
    from cli.audit import audit as run_audit

    load_environment()
    run_audit(
        Options(
            federation=federation,
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
            jobs=jobs,
        )
    )

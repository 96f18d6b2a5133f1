"""A sequencer that was frozen and wakes up after its successor wrote."""

import os
import signal

from schemas import events as e
from tests.integration.harness import Federation, World, wait_until

SUCCESSOR = "second-sequencer"


def test_a_frozen_sequencer_that_wakes_up_cannot_fork_the_log(
    world: World, main: Federation
) -> None:
    number = main.request_round()
    main.wait(e.RoundStarted, round=number)
    # The guard leads a session of its own; the sequencer is in it.
    restarts = world.services.restarts().get("sequencer", 0)
    (frozen,) = world.services.pids("sequencer").values()
    os.killpg(frozen, signal.SIGSTOP)
    try:
        world.services.start(SUCCESSOR, "serve", "sequencer")
        main.wait(e.ModelVersionRegistered, 90, round=number)
    finally:
        os.killpg(frozen, signal.SIGCONT)
    # One that was frozen while idle joins again, and finds out when it has to write:
    # rounds give it something to write.
    for _ in range(5):
        main.run_round(90)
        if world.services.restarts().get("sequencer", 0) > restarts:
            break
    wait_until(
        lambda: world.services.restarts().get("sequencer", 0) > restarts,
        "the frozen sequencer finds that it is replaced",
    )
    assert "ProducerFenced" in world.services.log_of("sequencer", 200)
    world.services.stop(SUCCESSOR)
    main.run_round(90)

    report = main.audit()
    assert report["is_sound"], report["findings"]

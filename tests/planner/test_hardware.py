"""Clusters as a user types them, and cards as others spell them."""

import pytest

from puna.core.errors import UsageError
from puna.planner.hardware import GPUS, find_gpu, read_cluster


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [("512xH100", 512, "H100"), ("8 x h200", 8, "H200"), ("16,384xH100", 16384, "H100"), ("A100", 1, "A100")],
)
def test_a_cluster_is_a_count_and_a_kind(text, count, name):
    cluster = read_cluster(text)
    assert (cluster.n_gpus, cluster.gpu.name) == (count, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("DGX-GB200", "GB200"),
        ("A100-40GB", "A100-40GB"),
        ("A100-80GB", "A100"),
        ("H100 96GB", "H100-96GB"),
        ("DGX-B300", "B300"),
    ],
)
def test_cards_are_known_by_their_spellings(text, name):
    assert find_gpu(text).name == name


@pytest.mark.parametrize("text", ["0xH100", "8xTPU", "512", "x", "8xH100+8xA100"])
def test_what_is_no_cluster_is_refused_with_an_example_or_the_list(text):
    with pytest.raises(UsageError, match=r"512xH100|8xH100|known are"):
        read_cluster(text)


def test_a_node_with_less_network_has_less_a_gpu():
    assert read_cluster("16xA100").with_network(400).gpu.network_bandwidth == 400e9 / 8 / 8


def test_low_precision_is_never_slower_on_paper():
    for gpu in GPUS.values():
        assert gpu.bf16_flops <= gpu.fp8_flops <= gpu.fp4_flops

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.batch import IGNORE
from puna.core.errors import ConfigError, MissingError
from puna.data.loader import PackedLoader
from tests.data.shard_sets import BOS, END, STRIDE, make_set

SIZES = {"code": [1, 5, 70, 12, 200, 33, 8, 90, 41, 2, 64, 17], "prose": [9, 14, 3, 77, 25, 130, 6, 58, 19, 21, 4]}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"), SIZES, documents_per_shard=5)


def _loader(shards, **changes):
    settings = {"weights": {"code": 0.6, "prose": 0.4}, "rows": 4, "sequence_length": 32, "seed": 3, "window_rows": 4}
    return PackedLoader([shards], **(settings | changes))


def _same(a, b):
    return all(
        np.array_equal(getattr(a, key), getattr(b, key)) for key in ("tokens", "targets", "positions", "lengths")
    )


def _pieces(batch):
    """Per piece its tokens, targets and positions."""
    ends = np.cumsum(batch.lengths)[:-1]
    return zip(
        *(np.split(getattr(batch, key).reshape(-1), ends) for key in ("tokens", "targets", "positions")), strict=True
    )


def _document(token):
    return token // STRIDE


def test_no_piece_crosses_a_document_or_a_row(shards):
    loader = _loader(shards)
    for _ in range(20):
        batch = loader.next_batch()
        assert batch.lengths.sum() == batch.tokens.size
        ends = np.cumsum(batch.lengths)
        assert set(range(32, 4 * 32 + 1, 32)) <= set(ends.tolist())
        for tokens, _, positions in _pieces(batch):
            content = tokens[tokens >= STRIDE]
            assert len(set(_document(content).tolist())) <= 1
            assert np.all(np.diff(content) == 1)
            assert not np.any(tokens[1:] == BOS)
            assert not np.any(tokens[:-1] == END)
            assert positions.tolist() == list(range(len(tokens)))


def test_targets_are_the_next_token_of_the_document_and_stop_at_its_end(shards):
    loader = _loader(shards)
    for _ in range(20):
        batch = loader.next_batch()
        assert batch.n_targets == np.count_nonzero(batch.targets != IGNORE)
        for tokens, targets, _ in _pieces(batch):
            assert np.array_equal(targets[:-1], tokens[1:])
            if tokens[-1] == END:
                assert targets[-1] == IGNORE
            elif tokens[-1] == BOS:
                assert targets[-1] % STRIDE == 0
            else:
                assert targets[-1] in (tokens[-1] + 1, END)


@pytest.mark.parametrize("window_rows", [1, 3, 64])
@pytest.mark.parametrize("sequence_length", [8, 31])
def test_every_token_is_read_once_an_epoch(tmp_path, window_rows, sequence_length):
    shards = make_set(tmp_path, {"code": SIZES["code"]}, documents_per_shard=4)
    total = shards.sources()["code"].n_tokens
    loader = PackedLoader([shards], rows=1, sequence_length=sequence_length, seed=0, window_rows=window_rows)
    window = min(window_rows, total // sequence_length) * sequence_length
    epochs = 5
    counts: Counter[int] = Counter()
    targets: Counter[int] = Counter()
    for _ in range(window // sequence_length * -(-total * epochs // window)):
        batch = loader.next_batch()
        counts.update(batch.tokens.reshape(-1).tolist())
        targets.update(batch.targets[batch.targets >= STRIDE].tolist())
    content = [(i + 1) * STRIDE + j for i, size in enumerate(SIZES["code"]) for j in range(size)]
    over = -(-window // total)  # the last window may have begun further epochs
    assert set(counts) == {BOS, END, *content}
    assert {counts[token] for token in content} <= set(range(epochs, epochs + over + 1))
    assert {targets[token] for token in content} <= set(range(epochs, epochs + over + 1))


def test_whole_epochs_read_every_token_exactly_as_often(tmp_path):
    shards = make_set(tmp_path, {"code": [30, 14, 6, 46, 22]})  # 118 + 2 * 5 = 128 tokens
    loader = PackedLoader([shards], rows=4, sequence_length=16, seed=1, window_rows=2)
    for epochs in range(1, 4):
        batches = [loader.next_batch() for _ in range(2)]
        counts = Counter(np.concatenate([b.tokens.reshape(-1) for b in batches]).tolist())
        assert {n for token, n in counts.items() if token >= STRIDE} == {1}
        assert loader.epochs == {"code": float(epochs)}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_read_slices_of_the_same_global_batch(shards, world):
    whole = _loader(shards)
    ranks = [_loader(shards, rank=rank, world=world) for rank in range(world)]
    for _ in range(12):
        expected = whole.next_batch()
        parts = [loader.next_batch() for loader in ranks]
        for key in ("tokens", "targets", "positions", "lengths"):
            assert np.array_equal(np.concatenate([getattr(part, key) for part in parts]), getattr(expected, key))
        assert sum(part.n_targets for part in parts) == expected.n_targets
    assert all(loader.state() == whole.state() for loader in ranks)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.sampled_from([1, 2, 4]), st.sampled_from([1, 4, 7]))
def test_resuming_anywhere_on_any_number_of_ranks_goes_on_undisturbed(shards, steps, world, window_rows):
    loader = _loader(shards, window_rows=window_rows)
    for _ in range(steps):
        loader.next_batch()
    state = json.loads(json.dumps(loader.state()))
    resumed = [_loader(shards, window_rows=window_rows, rank=rank, world=world) for rank in range(world)]
    for other in resumed:
        other.restore(state)
    for _ in range(9):
        expected = loader.next_batch()
        got = np.concatenate([other.next_batch().tokens for other in resumed])
        assert np.array_equal(got, expected.tokens)


def test_the_state_stays_small(shards):
    loader = _loader(shards)
    for _ in range(100):
        loader.next_batch()
    assert len(json.dumps(loader.state())) < 1000


def test_the_mix_keeps_to_its_weights_after_every_row(shards):
    loader = _loader(shards, weights={"code": 0.29, "prose": 0.71}, rows=1)
    read: Counter[str] = Counter()
    for n in range(1, 200):
        read.update(loader.next_batch().sources)
        assert abs(read["code"] - 0.29 * n * 32) <= 32
    assert loader.weights == {"code": pytest.approx(0.29), "prose": pytest.approx(0.71)}


def test_without_weights_sources_count_by_size(shards):
    loader = PackedLoader([shards], rows=1, sequence_length=8, seed=0)
    sizes = loader.tokens_per_epoch
    assert loader.weights["code"] == pytest.approx(sizes["code"] / sum(sizes.values()))


def test_a_weight_of_zero_leaves_a_source_out(shards):
    loader = _loader(shards, weights={"code": 1, "prose": 0})
    assert loader.next_batch().sources == {"code": 128}


def test_seeds_give_other_orders_and_the_same_seed_the_same(shards):
    first, again, other = (_loader(shards, seed=seed).next_batch() for seed in (1, 1, 2))
    assert _same(first, again)
    assert not _same(first, other)


def test_a_state_of_other_data_is_refused(shards):
    state = _loader(shards).state()
    with pytest.raises(ConfigError, match="sequence_length was 32 and is now 16"):
        _loader(shards, sequence_length=16).restore(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"cod": 1.0}}, "Did you mean 'code'"),
        ({"weights": {"code": -1.0}}, "not negative"),
        ({"weights": {"code": 0.0}}, "every weight is 0"),
        ({"rows": 3, "world": 2}, "cannot be shared by 2"),
        ({"sequence_length": 1}, "at least 2"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(shards, changes, message):
    with pytest.raises(ConfigError, match=message):
        _loader(shards, **changes)


def test_a_weighed_source_may_have_nothing_held_out(tmp_path):
    shards = make_set(tmp_path, SIZES, held_out=["prose"])
    assert _loader(shards, split="held_out").weights == {"prose": 1.0}
    with pytest.raises(ConfigError, match="'pros'"):
        _loader(shards, split="held_out", weights={"prose": 1, "pros": 1})


def test_a_split_without_documents_is_missing(shards):
    with pytest.raises(MissingError, match="held_out"):
        _loader(shards, split="held_out")


def test_shorter_sequences_are_cut_out_of_the_same_rows(shards):
    """From row 8 on whole rows; before, no piece is longer than 8 tokens or crosses a multiple of 8; targets go on."""
    plain, cut = _loader(shards), _loader(shards, cuts=[(0, 8), (8, 32)])
    for number in range(4):
        whole, short = plain.next_batch(), cut.next_batch()
        assert np.array_equal(whole.tokens, short.tokens) and np.array_equal(whole.targets, short.targets)
        if number >= 2:
            assert _same(whole, short)
            continue
        ends, every = np.cumsum(short.lengths), np.arange(8, 129, 8)
        assert set(every) <= set(ends) and set(np.cumsum(whole.lengths)) <= set(ends)
        for tokens, _, positions in _pieces(short):
            assert len(tokens) <= 8 and positions.tolist() == list(range(len(tokens)))
    assert plain.state() == cut.state()
    with pytest.raises(ConfigError, match="cannot be cut every 5"):
        _loader(shards, cuts=[(0, 5)])

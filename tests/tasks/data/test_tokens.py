"""Packed tokens are the documents, and which of them a step sees is a pure function of (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.data.batch import joined
from tasks.data.tokens import Sampler, Tokens, TokenWriter, calibration_batches
from tests.tasks import data_zoo


def sampler(tmp_path, sequences: int = 10, length: int = 4, batch: int = 4, seed: int = 0) -> Sampler:
    return Sampler(data_zoo.write_tokens(tmp_path, "train", np.arange(sequences * length)), length, batch, seed)


def test_sequences_are_cut_inside_a_shard_and_its_tail_dropped(tmp_path):
    tokens = data_zoo.write_tokens(tmp_path, "train", [0, 1, 2, 3, 4], [5, 6, 7, 8])
    assert tokens.total == 9 and tokens.sequences(2) == 4
    assert [tokens.sequence(number, 2).tolist() for number in range(4)] == [[0, 1], [2, 3], [5, 6], [7, 8]]
    with pytest.raises(IndexError):
        tokens.sequence(4, 2)


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_ids_fit_their_type(vocabulary, dtype, tmp_path):
    writer = TokenWriter(tmp_path, "train", vocabulary)
    writer.add([0, vocabulary - 1])
    writer.flush()
    assert Tokens(tmp_path, "train").shards[0].dtype == dtype
    assert Tokens(tmp_path, "train").sequence(0, 2).tolist() == [0, vocabulary - 1]
    assert writer.counts[vocabulary - 1] == 1 and writer.counts.sum() == 2


def test_an_epoch_sees_every_sequence_once_and_the_next_in_another_order(tmp_path):
    drawn = sampler(tmp_path)
    numbers = [number for step in range(5) for number in drawn.numbers(step)]
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))
    assert numbers[:10] != numbers[10:]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_slices_of_all_ranks_are_the_global_batch(ranks, tmp_path):
    drawn = sampler(tmp_path)
    for step in (0, 2, 7):
        slices = [drawn.at(step, rank, ranks) for rank in range(ranks)]
        assert torch.equal(joined(slices).tokens, drawn.at(step).tokens)


def test_a_step_means_the_same_batch_in_whatever_order_it_is_asked_for(tmp_path):
    one, other = sampler(tmp_path), sampler(tmp_path)
    forwards = {step: one.numbers(step) for step in range(9)}
    assert {step: other.numbers(step) for step in reversed(range(9))} == forwards
    assert sampler(tmp_path, seed=1).numbers(0) != forwards[0]


def test_a_split_without_one_sequence_is_refused(tmp_path):
    with pytest.raises(ValueError, match="split train has 3 tokens, less than one sequence of 4"):
        Sampler(data_zoo.write_tokens(tmp_path, "train", [1, 2, 3]), 4, 1, 0)


def test_calibration_draws_without_repetition_and_the_same_for_a_seed(tmp_path):
    data_zoo.write_tokens(tmp_path, "calibration", np.arange(40))
    batches = list(calibration_batches(tmp_path, 7, 4, 3, seed=0))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert len(np.unique(joined(batches).tokens[:, 0])) == 7
    again = calibration_batches(tmp_path, 7, 4, 3, seed=0)
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(batches, again, strict=True))
    assert not torch.equal(next(calibration_batches(tmp_path, 7, 4, 3, seed=1)).tokens, batches[0].tokens)
    with pytest.raises(ValueError, match="calibration wants 11 sequences of 4 tokens, its split holds 10"):
        next(calibration_batches(tmp_path, 11, 4, 3, seed=0))

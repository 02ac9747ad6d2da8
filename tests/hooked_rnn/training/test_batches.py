"""Minibatches: every sequence once in an epoch, in an order that the seed decides and a checkpoint keeps."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, TrainConfig, train
from hooked_rnn.errors import ConfigError
from hooked_rnn.prefix_gradients import LabelledTrie
from hooked_rnn.prefixes import PrefixTrie
from hooked_rnn.training.batches import Minibatches, Sequences
from hooked_rnn.training.loop import learning_rate

TASK = ModularAddition(7)
SEQUENCES = Sequences.of(TASK.tokens, TASK.labels, torch.device("cpu"))


def rows(batch: Sequences) -> list[int]:
    return (batch.tokens[:, 0] * 7 + batch.tokens[:, 1]).tolist()


@given(size=st.integers(1, 49), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_an_epoch_has_every_sequence_once_and_the_next_another_order(size: int, seed: int) -> None:
    minibatches, epochs = Minibatches(SEQUENCES, size, seed), []
    for epoch in range(2):
        first = epoch * minibatches.per_epoch + 1
        batches = [rows(minibatches.at(step)) for step in range(first, first + minibatches.per_epoch)]
        assert all(len(batch) == size for batch in batches[:-1])
        epochs.append([row for batch in batches for row in batch])
        assert sorted(epochs[-1]) == list(range(49))
    assert epochs[0] != epochs[1]


@given(size=st.integers(1, 49), stop=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_restored_after_any_step_the_batches_go_on_as_they_would_have(size: int, stop: int) -> None:
    whole, resumed = Minibatches(SEQUENCES, size, 0), Minibatches(SEQUENCES, size, 0)
    expected = [rows(whole.at(step)) for step in range(1, 41)]
    cut = Minibatches(SEQUENCES, size, 0)
    for step in range(1, stop + 1):
        cut.at(step)
    resumed.restore(cut.state_after(stop), stop)
    assert [rows(resumed.at(step)) for step in range(stop + 1, 41)] == expected[stop:]


@pytest.mark.parametrize("batch_size", [None, 7])
def test_the_index_of_prefixes_is_built_once_for_a_split(batch_size: int | None) -> None:
    model = HookedRNN(HookedRNNConfig(d_vocab=7, d_vocab_out=7, d_model=4, d_hidden=5))
    config = TrainConfig.recipe("fast", steps=9, orthogonal_steps=4, eval_every=2, batch_size=batch_size)
    with (
        mock.patch.object(PrefixTrie, "of", side_effect=PrefixTrie.of) as trie,
        mock.patch.object(LabelledTrie, "parts_of", side_effect=LabelledTrie.parts_of) as labelled,
    ):
        train(model, TASK, config, progress=False)
    assert trie.call_count == 1  # of all sequences; the split's, and a minibatch's, is a selection of its nodes
    assert labelled.call_count == (1 if batch_size is None else 9)


def test_a_batch_is_its_own_sequences_with_their_labels() -> None:
    batch = Minibatches(SEQUENCES, 10, 0).at(1)
    assert torch.equal(batch.labels, batch.tokens.sum(1) % 7)
    model = HookedRNN(HookedRNNConfig(d_vocab=7, d_vocab_out=7, d_model=4, d_hidden=5, dtype=torch.float64))
    expected = model(batch.tokens, return_type="loss", labels=batch.labels)
    torch.testing.assert_close(batch.backward(model), expected.detach(), rtol=1e-12, atol=0)


def test_another_seed_is_another_order() -> None:
    assert rows(Minibatches(SEQUENCES, 10, 0).at(1)) != rows(Minibatches(SEQUENCES, 10, 1).at(1))


def test_minibatches_train() -> None:
    def last(**fields: object) -> dict:
        model = HookedRNN(HookedRNNConfig(d_vocab=7, d_vocab_out=7, d_model=16, d_hidden=24))
        config = TrainConfig.recipe("adamw", steps=120, lr=1e-2, weight_decay=0.0, **fields)
        return train(model, TASK, config, progress=False).history[-1]

    assert last(batch_size=8)["train_accuracy"] == 1.0
    assert last(batch_size=8) != last(batch_size=9)


def test_more_than_there_is_in_a_minibatch_is_refused() -> None:
    model = HookedRNN(HookedRNNConfig(d_vocab=7, d_vocab_out=7, d_model=4, d_hidden=5))
    with pytest.raises(ConfigError, match="batch_size=40: expected at most 29, the sequences to train on"):
        train(model, TASK, TrainConfig.recipe("adamw", batch_size=40), progress=False)


def test_the_learning_rate_warms_up_at_the_start_of_each_phase() -> None:
    config = TrainConfig.recipe("fast", orthogonal_steps=6, steps=12, warmup_steps=4, orthogonal_lr=0.4, lr=0.2)
    rates = [learning_rate(config, step) for step in range(1, 13)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.05, 0.1, 0.15, 0.2, 0.2, 0.2])
    assert learning_rate(TrainConfig.recipe("fast"), 1) == 1e-2  # the control: no warm-up

"""A task holds every sequence once, in canonical order, with its label."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_rnn import ModularAddition, ModularTask
from hooked_rnn.errors import TaskError
from hooked_rnn.tasks import task_from_dict


@given(p=st.integers(2, 12), operands=st.integers(1, 3), equals_token=st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_sequence_once_first_operand_major_with_its_sum(p: int, operands: int, equals_token: bool) -> None:
    task = ModularAddition(p, operands, equals_token)
    numbers = task.tokens[:, :operands]
    place_values = p ** torch.arange(operands - 1, -1, -1)
    assert torch.equal((numbers * place_values).sum(1), torch.arange(p**operands))
    assert task.labels.tolist() == [sum(row) % p for row in numbers.tolist()]
    assert task.tokens.shape == (p**operands, task.n_ctx)
    assert not equals_token or bool((task.tokens[:, -1] == p).all())
    assert (task.d_vocab, task.d_vocab_out) == (p + equals_token, p)


@given(fraction=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_split_is_a_partition_of_the_asked_size(fraction: float, seed: int) -> None:
    task = ModularAddition(11)
    train, test = task.split(fraction, seed)
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(121))
    assert len(train) == max(1, round(fraction * 121))


def test_split_depends_on_its_seed_alone() -> None:
    task = ModularAddition(11)
    torch.manual_seed(1)
    first, state = task.split(0.5, 3)[0], torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, task.split(0.5, 3)[0])
    assert not torch.equal(first, task.split(0.5, 4)[0])
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # and leaves the global state alone


def test_another_operation_is_one_small_class() -> None:
    @dataclass(frozen=True)
    class ModularDifference(ModularTask):
        def operation(self, numbers: torch.Tensor) -> torch.Tensor:
            return numbers[:, 0] - numbers[:, 1]

    task = ModularDifference(5)
    assert task.labels.tolist() == [(a - b) % 5 for a in range(5) for b in range(5)]


def test_a_task_survives_its_dictionary() -> None:
    task = ModularAddition(7, 3, True)
    assert task_from_dict(task.to_dict()) == task


@pytest.mark.parametrize("p", [1, 0, -3, True])
def test_wrong_modulus_is_refused(p: int) -> None:
    with pytest.raises(TaskError, match=r"p=.*at least 2"):
        ModularAddition(p)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(TaskError, match="above 0 and at most 1"):
        ModularAddition(5).split(fraction, 0)


def test_a_world_too_large_for_memory_is_refused() -> None:
    with pytest.raises(TaskError, match="at most 50,000,000 fit"):
        ModularAddition(113, operands=4)


def test_unknown_task_and_unknown_field_are_refused() -> None:
    with pytest.raises(TaskError, match="unknown task 'ModularDivision': expected 'ModularAddition'"):
        task_from_dict({"name": "ModularDivision", "p": 5})
    with pytest.raises(TaskError, match="does not make a task"):
        task_from_dict({"name": "ModularAddition", "q": 5})

"""Logits without a forward pass over all pairs: what removals at every place take them from."""

import torch
from planted import random_model
from torch.testing import assert_close

from analyses.ablation import frequency_hook
from analyses.adder import Adder
from analyses.grid import remove_from_grid
from analyses.places import last_place, read
from analyses.sites import drawn_pairs, logits_from_state, own_logits
from analyses.weight_removal import removed_from_weight
from hooked_rnn import ModularAddition

TASK = ModularAddition(11)


def adder() -> Adder:
    return Adder(random_model(TASK), TASK)


def test_own_logits_are_the_forward_pass_by_the_weights_of_the_moment() -> None:
    network = adder()
    own, before = own_logits(network), network.logits()
    assert_close(own(), before)
    for weight in ("W_E", "W_ih", "W_hh", "W_U"):
        with removed_from_weight(network, weight, [2, 5]):
            assert_close(own(), network.logits())
            assert not torch.allclose(own(), before)


def test_own_logits_of_a_model_with_hooks_are_the_hooked_ones() -> None:
    network = adder()
    network.model.add_hook("blocks.0.hook_hidden", lambda x, hook: 2 * x)
    assert_close(own_logits(network)(), network.logits())


def test_logits_from_the_state_are_those_of_the_hook_that_puts_it_in() -> None:
    network = adder()
    place, pairs = last_place(network), drawn_pairs(network, 40)
    state = read(network, place)
    by_hook = network.logits([(place.hook_name, frequency_hook(11, [3], "sum", place.position))])
    without = remove_from_grid(state, 11, [3], "sum")
    assert_close(logits_from_state(network, state)(without[pairs], pairs), by_hook[pairs])
    assert not torch.allclose(by_hook, network.logits())

"""Key-frequency rules: each finds what was planted and nothing in random weights, on every kind of model."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import circles, exact, normal, random_model
from test_adder import MLP, transformer
from torch.testing import assert_close

from analyses.adder import Adder
from analyses.errors import ActivationError, RuleError
from analyses.key_frequencies import RULES, find, logit_spectrum, neuron_hook, spectrum_of
from analyses.measure import key_frequencies_of
from analyses.operands import activation_spectrum
from analyses.oracle import fourier_adder
from analyses.spectra import KeyFrequencies, Spectrum, grid_spectrum, key_frequencies, weight_spectrum
from hooked_rnn import ModularAddition

few_examples = settings(max_examples=15, deadline=None, derandomize=True, database=None)
HIDDEN = "blocks.0.hook_hidden"


@given(st.sampled_from([17, 23, 31]), st.floats(0.0, 3e-3), st.data())
@few_examples
def test_every_rule_finds_the_planted_frequencies(p: int, noise: float, data: st.DataObject) -> None:
    ks = data.draw(st.lists(st.integers(1, p // 2), min_size=1, max_size=3, unique=True))
    strengths = [1.0, 0.9, 0.8][: len(ks)]
    model = fourier_adder(p, ks, strengths, neurons=32, noise=noise)
    for rule in RULES:
        found = find(Adder(model, ModularAddition(p)), rule)
        assert found.frequencies == sorted(ks), rule
        assert found.rule == rule
        assert found.settings == RULES[rule].settings
        assert all((found.spectrum.share(k) > found.threshold) == (k in ks) for k in range(1, p // 2 + 1))
        if rule != "neuron argmax":  # there all have the same share: a third of the neurons
            assert found.by_share == ks


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("p", [23, 31])
def test_no_rule_but_a_bare_threshold_finds_anything_in_random_weights(p: int, seed: int) -> None:
    adder = Adder(random_model(ModularAddition(p), seed=seed), ModularAddition(p))
    for rule in RULES:
        if rule != "threshold":
            assert find(adder, rule).frequencies == [], rule
    # a share that does not scale with 1/(p//2) is above or below all of it
    assert find(adder, "threshold", share=3 / (p // 2)).frequencies == []
    assert find(adder, "threshold", share=0.2 / (p // 2)).frequencies == list(range(1, p // 2 + 1))


def planted_transformer(p: int) -> Any:
    model = transformer(p)
    with torch.no_grad():
        model.W_E[:p] = (3 * circles(p, [4], [1.0]) @ normal(2, 12)).to(model.W_E)
        model.W_U[:, :p] = (circles(p, [4], [1.0]) @ normal(2, 12)).T.to(model.W_U)
    return model


def planted_mlp(p: int) -> MLP:
    model = MLP(p, d=32)
    f = 2 * math.pi * torch.arange(32) / 32
    angle = 2 * math.pi * 4 * torch.arange(p)[:, None] / p
    with torch.no_grad():  # the oracle without recurrence
        model.W_E.copy_((angle + f).cos())
        model.W_U.copy_((angle + 2 * f).cos().T)
    return model


def test_on_a_transformer_and_on_an_mlp() -> None:
    p = 31  # of few frequencies one explains much of a random neuron by chance
    for equals, planted, random in (
        (True, planted_transformer(p), transformer(p)),
        (False, planted_mlp(p), MLP(p, 48)),
    ):
        task = ModularAddition(p, equals_token=equals)
        for rule in ("embedding share", "neuron argmax", "threshold", "elbow"):
            assert find(Adder(planted, task), rule, **{"share": 0.2} if rule == "threshold" else {}).frequencies == [4]
        for rule in ("embedding share", "neuron argmax", "logit variance"):
            assert find(Adder(random, task), rule).frequencies == [], rule
        assert find(Adder(planted, task), "embedding share", of="W_U").frequencies == [4]
    assert find(Adder(planted_mlp(p), ModularAddition(p)), "logit variance").frequencies == [4]


def test_the_default_rule_is_that_of_the_report() -> None:
    for model in (fourier_adder(31, [5, 12], noise=0.05), random_model(ModularAddition(31))):
        task = ModularAddition(31)
        old = key_frequencies(weight_spectrum(model.W_E @ model.blocks[0].W_ih, 31))
        new = find(Adder(model, task))
        assert key_frequencies_of(model, task).by_share == new.by_share
        assert (new.frequencies, new.by_share, new.threshold) == (old.frequencies, old.by_share, old.threshold)
        assert torch.equal(new.spectrum.shares, old.spectrum.shares)
        assert (new.rule, new.of, old.rule, old.of) == ("embedding share", "W_E W_ih", "times uniform", "")
        assert new.settings == old.settings == {"times_uniform": 2.0}


def test_rules_disagree_where_the_model_does() -> None:
    model = fourier_adder(23, [3, 7], neurons=[32, 64])
    with torch.no_grad():
        model.embed.W_E.copy_(model.W_E)
        model.unembed.W_U[:32] = 0.0  # the answer does not use frequency 3, which the embedding and the neurons have
    adder = Adder(model, ModularAddition(23))
    assert find(adder).frequencies == find(adder, "neuron argmax").frequencies == [3, 7]
    assert find(adder, "logit variance").frequencies == find(adder, "elbow", of="W_U").frequencies == [7]


@pytest.mark.parametrize(
    ("rule", "settings_", "expected"),
    [
        ("embedding share", {"times_uniform": 6.0}, [7]),
        ("threshold", {"share": 0.3}, [7]),
        ("elbow", {"least_ratio": 1e9}, []),
        ("elbow", {"floor": 8.0}, []),
        ("neuron argmax", {"share": 0.4}, [7]),
        ("neuron argmax", {"explained": 0.99}, []),
        ("logit variance", {"share": 0.5}, [7]),
    ],
)
def test_the_threshold_is_an_argument_and_in_the_result(rule: str, settings_: Any, expected: list[int]) -> None:
    adder = Adder(fourier_adder(31, [3, 7], [0.7, 1.0], neurons=[32, 64]), ModularAddition(31))
    found = find(adder, rule, **settings_)
    assert found.frequencies == expected
    assert found.settings == {**RULES[rule].settings, **settings_}


def test_the_elbow_is_the_largest_ratio_of_consecutive_shares() -> None:
    adder = Adder(fourier_adder(31, [3, 7, 11], [1.0, 0.9, 0.3], noise=1e-3), ModularAddition(31))
    assert find(adder, "elbow", of="W_E", floor=0.01).by_share == [3, 7, 11]
    # a tenth of 1/15 or less counts as that much: from 43% to 4.7% is now a larger step than from there to 0.67%
    assert find(adder, "elbow", of="W_E").by_share == [3, 7]


def test_the_logit_spectrum_is_the_projection_on_cosines_of_answer_less_label() -> None:
    p = 8
    task = ModularAddition(p)
    logits = normal(p * p, p) + normal(p * p, 1)
    centred = logits - logits.mean(1, keepdim=True)
    ahead = (torch.arange(p) - task.labels[:, None]).double()
    for k in range(1, p // 2 + 1):
        function = (2 * math.pi * k / p * ahead).cos()
        share = (centred * function).sum() ** 2 / function.square().sum() / centred.square().sum()
        assert logit_spectrum(logits, task.labels, p).share(k) == pytest.approx(float(share))
    function = (2 * math.pi * 3 / p * ahead).cos()
    assert_close(
        logit_spectrum(2 * function + 5, task.labels, p).shares, torch.tensor([0.0, 0, 1, 0]).double(), **exact
    )


def test_a_spectrum_is_of_a_weight_the_logits_or_any_activation() -> None:
    adder = Adder(fourier_adder(13, [3, 5]), ModularAddition(13))
    of_hidden = spectrum_of(adder, HIDDEN)
    assert_close(of_hidden.shares, grid_spectrum(adder.activation(HIDDEN), 13).shares, **exact)
    assert spectrum_of(adder, "W_U").strongest(2) == spectrum_of(adder, "logits").strongest(2) == {3, 5}
    task = ModularAddition(5, operands=3)
    three = Adder(random_model(task), task)
    patterns = activation_spectrum(three, HIDDEN).patterns
    by_hand = torch.stack(list(patterns.values())).sum(0)
    assert_close(spectrum_of(three, HIDDEN).shares, by_hand / by_hand.sum(), **exact)


def test_neurons_are_found_by_the_name_of_their_hook_point() -> None:
    task = ModularAddition(7)
    deep = random_model(task, n_layers=2)
    deep.set_use_step_hooks(True, 2)
    assert neuron_hook(Adder(deep, task)) == "blocks.1.hook_hidden"
    assert neuron_hook(Adder(MLP(7), task)) == "hook_hidden"
    with_equals = ModularAddition(7, equals_token=True)
    assert neuron_hook(Adder(transformer(7), with_equals)) == "blocks.0.mlp.hook_post"
    unnamed = MLP(7)
    unnamed.mod_dict["hook_neurons"] = unnamed.hook_dict["hook_neurons"] = unnamed.hook_dict.pop("hook_hidden")
    with pytest.raises(ActivationError, match="expected one to be given"):
        find(Adder(unnamed, task), "neuron argmax")


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        ("kink", {}, "unknown rule 'kink': expected 'embedding share', 'neuron argmax'"),
        ("elbow", {"share": 0.1}, "rule 'elbow' has no argument 'share': expected 'least_ratio' or 'floor'"),
        ("threshold", {"of": "W_F"}, "of='W_F': no weight or hook point has that name; nearest: 'W_U'"),
        ("neuron argmax", {"of": "W_E"}, "of='W_E'"),
        ("logit variance", {"of": "W_E"}, "of='W_E': expected 'logits'"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(rule: str, arguments: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        find(Adder(random_model(ModularAddition(7)), ModularAddition(7)), rule, **arguments)


def test_key_frequencies_of_a_bare_spectrum_have_no_source() -> None:
    found = key_frequencies(Spectrum(torch.tensor([0.9, 0.1]).double()), 1.5)
    assert isinstance(found, KeyFrequencies)
    assert (found.rule, found.of, found.settings) == ("times uniform", "", {"times_uniform": 1.5})

"""The sites of any model: an ordinary forward pass of the edited one. Of recurrent networks, see test_ablation.py too."""

from typing import Any

import pytest
import torch
from planted import FREQUENCIES, OwnAnswers, P, fourier_adder, normal, random_model
from test_adder import MLP, transformer
from torch.testing import assert_close

from analyses.ablation import Part, ablate, frequency_hook
from analyses.adder import Adder
from analyses.places import last_place, read
from analyses.sites import SITES, accuracy, drawn_pairs, looks_up, reads_linearly, sites
from analyses.weight_removal import removed_from_weight
from hooked_rnn import HookedMLPConfig, ModularAddition, TransformerConfig, build_model
from hooked_rnn.baselines.transformer import build_transformer

SMALL = 7


def own(model: object, equals_token: bool = False) -> Adder:
    """A model and the task of saying what it says, so that random weights have 100%."""
    task = ModularAddition(SMALL, equals_token=equals_token)
    answers = Adder(model, task).logits().argmax(-1)
    return Adder(model, OwnAnswers(task.p, task.operands, task.equals_token, answers))


def lively(model: Any) -> Any:
    """The model with weights so large that its answers differ from pair to pair."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i) / max(parameter.shape) ** 0.25)
    return model


def adders() -> list[Adder]:
    gated = [lively(random_model(ModularAddition(SMALL), cell=cell)) for cell in ("gru", "lstm")]
    return [own(lively(transformer(SMALL)), equals_token=True), own(MLP(SMALL)), *map(own, gated)]


@pytest.mark.parametrize("adder", adders(), ids=["transformer", "mlp", "gru", "lstm"])
def test_of_any_model_they_are_a_forward_pass(adder: Adder) -> None:
    found, removed = sites(adder), [1, 3]
    weights = [parameter.clone() for parameter in adder.model.parameters()]
    for name in ("W_E", "W_U"):
        with removed_from_weight(adder, name, removed):
            expected = accuracy(adder.logits(), adder.labels)
        assert found[name].accuracy_without(removed) == pytest.approx(
            expected, abs=0.03
        )  # a tie may fall the other way
    place = last_place(adder)
    hook = (place.hook_name, frequency_hook(SMALL, removed, "sum", place.position))
    assert found["hidden"].accuracy_without(removed) == pytest.approx(
        accuracy(adder.logits([hook]), adder.labels), abs=0.03
    )
    for site in found.values():
        nothing = site.value.new_zeros(site.value.shape[1], 1)
        assert site.accuracy_less(Part(site.value @ nothing, nothing.T)) == 1.0
        assert site.accuracy_less(Part(site.value, site.value.new_ones(len(nothing)).diag())) < 0.9  # all of it
    assert all(torch.equal(before, after) for before, after in zip(weights, adder.model.parameters(), strict=True))


@pytest.mark.parametrize("name", SITES)
def test_where_something_is_between_state_and_logits_the_model_itself_runs(name: str) -> None:
    """A norm, as it were: the logits divided by their size. Every answer stays, and so does every accuracy."""
    plain = own(MLP(SMALL))

    class Normalised(MLP):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            logits = super().forward(tokens)
            return logits / logits.norm(dim=1, keepdim=True)

    normalised = Adder(Normalised(SMALL), plain.task)
    state = read(normalised, last_place(normalised))
    assert reads_linearly(plain, state, plain.logits())
    assert not reads_linearly(normalised, state, normalised.logits())
    for removed in ([1], [2, 3]):
        assert sites(normalised)[name].accuracy_without(removed) == sites(plain)[name].accuracy_without(removed)
        part = Part(normal(len(sites(plain)[name].value), 2).float(), normal(2, 12, seed=1).float())
        assert sites(normalised)[name].accuracy_less(part) == sites(plain)[name].accuracy_less(part)


def test_accuracy_on_some_of_the_pairs() -> None:
    adder = own(MLP(SMALL))
    assert_close(drawn_pairs(adder), torch.arange(SMALL**2))
    assert_close(drawn_pairs(adder, 1000), torch.arange(SMALL**2))
    pairs = drawn_pairs(adder, 20, seed=1)
    assert len(pairs) == len(set(pairs.tolist())) == 20
    assert pairs.tolist() == sorted(pairs.tolist()) == drawn_pairs(adder, 20, seed=1).tolist()
    assert pairs.tolist() != drawn_pairs(adder, 20, seed=2).tolist()
    with removed_from_weight(adder, "W_E", [1]):
        logits = adder.logits()
    site = sites(adder, 20, seed=1)["W_E"]
    on_some = accuracy(logits[pairs], adder.labels[pairs])
    assert site.accuracy_less(site.part([1])) == site.accuracy_without([1]) == on_some
    recurrent = own(lively(random_model(adder.task)))
    with removed_from_weight(recurrent, "W_E", [1]):
        logits = recurrent.logits()
    site = sites(recurrent, 20, seed=1)["W_E"]
    assert site.accuracy_less(site.part([1])) == accuracy(logits[pairs], recurrent.labels[pairs])
    assert site.accuracy_without([1]) == accuracy(logits, recurrent.labels)


@pytest.mark.parametrize("kind", ["transformer", "mlp"])
def test_looked_up_or_run_in_full_the_accuracies_are_the_same(kind: str) -> None:
    equals = kind == "transformer"
    sizes = {"d_vocab": SMALL + equals, "d_vocab_out": SMALL, "d_model": 16, "d_mlp": 32, "n_ctx": 2 + equals}
    cfg = TransformerConfig(**sizes, n_heads=2) if equals else HookedMLPConfig(**sizes)
    model = build_model(cfg)
    model.to(torch.float64)
    adder = own(model, equals_token=equals)
    adder.logits()  # from its first forward pass on, a bridge has hooks of its own
    assert looks_up(adder)
    quick = sites(adder, 20)["W_E"]
    seen: list[torch.Size] = []
    model.add_perma_hook("blocks.0.mlp.hook_post", lambda x, hook: seen.append(x.shape))
    assert not looks_up(adder)  # a hook has to see what it would have seen
    full = sites(adder, 20)["W_E"]
    seen.clear()
    parts = [quick.part([1, 3]), Part(normal(SMALL, 2), normal(2, 16, seed=1))]
    assert [quick.accuracy_less(part) for part in parts] == [full.accuracy_less(part) for part in parts]
    assert seen
    assert min(quick.accuracy_less(part) for part in parts) < 0.9
    every = sites(adder)["W_E"]
    assert quick.accuracy_without([1, 3]) == every.accuracy_without([1, 3])  # of all pairs, as that is quick


def test_a_norm_is_not_looked_up() -> None:
    cfg = TransformerConfig(d_vocab=SMALL + 1, d_vocab_out=SMALL, d_model=16, d_mlp=32, n_heads=2)
    assert looks_up(own(build_transformer(cfg), equals_token=True))
    assert not looks_up(own(build_transformer(cfg, "LNPre"), equals_token=True))
    assert not looks_up(own(MLP(SMALL)))  # nor a model of an unknown kind


def test_the_pairs_drawn_are_not_those_that_a_model_was_trained_on() -> None:
    adder = Adder(random_model(ModularAddition(P)), ModularAddition(P))
    drawn, trained = (set(pairs.tolist()) for pairs in (drawn_pairs(adder, 300), adder.task.split(300 / P**2, 0)[0]))
    assert len(drawn & trained) < 150  # a random 300 of 961 have some 94 in common


def test_fewer_draws_are_the_first_of_the_controls() -> None:
    site = sites(Adder(fourier_adder(noise=0.02), ModularAddition(P)))["W_U"]
    few, many = (ablate(site, list(FREQUENCIES), P, draws=draws) for draws in (1, 6))
    assert few.key == many.key
    assert few.random[1].min >= many.random[1].min
    assert few.random[1].min == few.random[1].max

"""What does not fit is one clear error from every operator of the Fourier toolbox, without the tests' own type checks."""

from collections.abc import Callable, Iterable

import pytest
import torch
from planted import fourier_adder, normal, random_model, unchecked
from test_adder import MLP, transformer
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from analyses.ablation import frequency_hook
from analyses.adder import Adder
from analyses.attribution import circle, explained_by_circles, hidden_fit, hidden_projections, singular_attribution
from analyses.circuit import Waves, distance_factor, logit_fit, phases, read_circuit, read_stage
from analyses.clock_pizza import distance_irrelevance
from analyses.errors import ActivationError, FrequencyError, GridError, ModulusError, ReportError
from analyses.fourier import FourierBasis
from analyses.grid import block_power, family_power, grid_functions, keep_on_grid, remove_from_grid
from analyses.key_frequencies import logit_spectrum
from analyses.neurons import cluster_neurons
from analyses.operands import tensor_spectrum
from analyses.oracle import fourier_adder as oracle
from analyses.restricted import progress_measures, restricted_to_families, restricted_to_trace
from analyses.singular_pairs import singular_pairs
from analyses.spectra import family_spectrum, grid_spectrum, weight_spectrum
from analyses.subsets import removal_lattice
from analyses.subspace import fit_subspace, leave_out
from analyses.weight_removal import token_directions, weight_without
from hooked_rnn import ModularAddition

P = 7
TASK = ModularAddition(P)
RNN = Adder(fourier_adder(P, (1, 2), (1.0, 1.0)), TASK)
WAVES = Waves(P, [1])
Frequencies = Iterable[int]


def hooked(name: str, x: Tensor) -> object:
    point = HookPoint()
    point.name = name
    return frequency_hook(P, [1])(x, hook=point)


OF_THE_GRID: dict[str, Callable[[Tensor], object]] = {
    "keep_on_grid": lambda x: keep_on_grid(x, P, [1], "sum"),
    "remove_from_grid": lambda x: remove_from_grid(x, P, [1], "sum"),
    "family_power": lambda x: family_power(x, P),
    "block_power": lambda x: block_power(x, P),
    "grid_spectrum": lambda x: grid_spectrum(x, P),
    "family_spectrum": lambda x: family_spectrum(x, P),
    "tensor_spectrum": lambda x: tensor_spectrum(x, P),
    "cluster_neurons": lambda x: cluster_neurons(x, P),
    "hidden_fit": lambda x: hidden_fit(x, normal(x.shape[1], P), 1),
    "read_stage": lambda x: read_stage(x, WAVES, "hook_embed", 0),
    "phases": lambda x: phases(x, WAVES, 1),
    "frequency_hook": lambda x: hooked("hook_hidden", x[:, None]),
    "logit_fit": lambda x: logit_fit(x, P, [1]),
    "distance_irrelevance": lambda x: distance_irrelevance(x, P),
    "restricted_to_families": lambda x: restricted_to_families(x, P, [1]),
    "restricted_to_trace": lambda x: restricted_to_trace(x, P, [1]),
}


@pytest.mark.parametrize("name", OF_THE_GRID)
def test_a_batch_that_is_not_the_full_grid(name: str) -> None:
    OF_THE_GRID[name](normal(P * P, P))
    for rows in (P * P - 1, P * P + 1, P**3, (P - 1) ** 2):
        with unchecked(), pytest.raises(GridError, match=f"a batch of {rows}: expected the full grid of p") as caught:
            OF_THE_GRID[name](normal(rows, P))
        assert "49" in str(caught.value) or "7**2" in str(caught.value)


@pytest.mark.parametrize(
    "operator",
    [
        lambda x: logit_fit(x, P, [1]),
        lambda x: distance_irrelevance(x, P),
        lambda x: restricted_to_families(x, P, [1]),
        lambda x: restricted_to_trace(x, P, [1]),
        lambda x: logit_spectrum(x, TASK.labels, P),
    ],
)
def test_logits_of_other_answers(operator: Callable[[Tensor], object]) -> None:
    operator(normal(P * P, P))
    with unchecked(), pytest.raises(GridError, match="logits of 8 answers: expected 7, as p is 7"):
        operator(normal(P * P, P + 1))


def test_rows_without_their_labels_or_pairs() -> None:
    with unchecked():
        with pytest.raises(GridError, match="49 labels for logits of 48 rows"):
            logit_spectrum(normal(48, P), TASK.labels, P)
        with pytest.raises(ActivationError, match="of 48 rows and 49 pairs"):
            leave_out(normal(48, 3), TASK.tokens, P, [1])


@pytest.mark.parametrize(
    "operator",
    [
        lambda p: weight_spectrum(normal(P, 5), p),
        lambda p: singular_pairs(normal(P, 5), p),
        lambda p: singular_attribution(normal(P, 5), p, 2, dim=0),
        lambda p: FourierBasis(p).keep(normal(P, 5), [1]),
    ],
)
@pytest.mark.parametrize("p", [5, 8, 1, 0, 7.0])
def test_a_modulus_that_is_not_the_axis(operator: Callable[[int], object], p: int) -> None:
    operator(P)
    with unchecked(), pytest.raises(ModulusError, match=r"expected length p=|expected a whole number of at least 2"):
        operator(p)


OF_FREQUENCIES: dict[str, Callable[[Frequencies], object]] = {
    "functions": lambda ks: FourierBasis(P).functions(ks),
    "grid_functions": lambda ks: grid_functions(P, ks, "block"),
    "frequency_hook": lambda ks: frequency_hook(P, ks),
    "fit_subspace": lambda ks: fit_subspace(normal(49, 4), TASK.tokens, P, ks),
    "leave_out": lambda ks: leave_out(normal(49, 4), TASK.tokens, P, ks, beside=()),
    "weight_without W_E": lambda ks: weight_without(RNN, "W_E", ks),
    "weight_without W_hh": lambda ks: weight_without(RNN, "W_hh", ks),
    "token_directions": lambda ks: token_directions(normal(P, 4), ks),
    "lattice at W_E": lambda ks: removal_lattice(RNN, ks),
    "lattice at W_U": lambda ks: removal_lattice(RNN, ks, "W_U"),
    "lattice at a hook": lambda ks: removal_lattice(RNN, ks, "hook_embed", control=False),
    "lattice.index": lambda ks: removal_lattice(RNN, [1], control=False).index(ks),
    "progress_measures": lambda ks: progress_measures(RNN, ks),
    "restricted_to_families": lambda ks: restricted_to_families(normal(49, P), P, ks),
    "restricted_to_trace": lambda ks: restricted_to_trace(normal(49, P), P, ks),
    "overlap": lambda ks: cluster_neurons(normal(49, 2), P).overlap(list(ks) if isinstance(ks, tuple) else ks),
    "Waves": lambda ks: Waves(P, ks),
    "logit_fit": lambda ks: logit_fit(normal(49, P), P, ks),
    "read_circuit": lambda ks: read_circuit(random_model(TASK), TASK, ks),
    "explained_by_circles": lambda ks: explained_by_circles(normal(P, 3), list(ks) if isinstance(ks, tuple) else ks),
    "share_of": lambda ks: weight_spectrum(normal(P, 3), P).share_of(list(ks) if isinstance(ks, tuple) else ks),
    "oracle": lambda ks: oracle(P, ks),
}


@pytest.mark.parametrize("name", OF_FREQUENCIES)
def test_frequencies_that_there_are_not(name: str) -> None:
    OF_FREQUENCIES[name]([1])
    for frequencies in ([0], [4], [-1], [1.5], ["1"], [1, 1], 3):
        with unchecked(), pytest.raises(FrequencyError, match="expected"):
            OF_FREQUENCIES[name](frequencies)


@pytest.mark.parametrize(
    "operator",
    [
        lambda k: weight_spectrum(normal(P, 3), P).share(k),
        lambda k: circle(normal(P, 3), k),
        lambda k: hidden_projections(normal(49, 3), normal(3, P), k),
        lambda k: hidden_fit(normal(49, 3), normal(3, P), k),
        lambda k: phases(normal(49, 3), WAVES, k),
        lambda k: distance_factor(P, k),
    ],
)
@pytest.mark.parametrize("frequency", [0, 4, -1, 1.5])
def test_a_frequency_that_there_is_not(operator: Callable[[int], object], frequency: int) -> None:
    operator(1)
    with unchecked(), pytest.raises(FrequencyError, match=f"frequency {frequency}"):
        operator(frequency)


@pytest.mark.parametrize("p", [3, 5, 6, 8, 11])
def test_a_model_of_another_modulus(p: int) -> None:
    task = ModularAddition(p)
    for model in (RNN.model, MLP(P)):
        with pytest.raises(ModulusError, match=f"W_E has 7 rows: expected {p}, the numbers of a task with p={p}"):
            Adder(model, task)
    with pytest.raises(ModulusError, match=f"W_E has 8 rows: expected {p + 1}, the numbers and '='"):
        Adder(transformer(P), ModularAddition(p, equals_token=True))
    with pytest.raises(ReportError, match="the model has d_vocab=7"):
        read_circuit(RNN.model, task, [1])


def test_a_model_of_other_answers() -> None:
    Adder(transformer(P), ModularAddition(P, equals_token=True))  # one answer more, which never is
    model = MLP(P)
    for columns in (P - 1, P + 2):
        model.W_U = torch.nn.Parameter(torch.zeros(12, columns))
        with pytest.raises(ModulusError, match=f"W_U has {columns} columns: expected 7 answers"):
            Adder(model, TASK)


@pytest.mark.parametrize("name", ["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_attn_scores"])
def test_an_activation_without_a_position_axis(name: str) -> None:
    adder = Adder(transformer(P), ModularAddition(P, equals_token=True))
    for operator in (
        lambda: adder.activation(name),
        lambda: adder.logits([(name, frequency_hook(P, [1]))]),
        lambda: removal_lattice(adder, [1], name),
        lambda: progress_measures(adder, [1], "activation", hook_name=name),
    ):
        with unchecked(), pytest.raises(ActivationError, match=r"shape \[49, 3, 3, 3\]"):
            operator()
    with unchecked(), pytest.raises(ActivationError, match=r"an activation of shape \[49\]"):
        hooked("hook_hidden", normal(49))

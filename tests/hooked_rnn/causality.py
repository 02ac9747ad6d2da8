"""What the tests of hooks share: models, points, hooks and their counterparts in the unrolled network."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from reference import LOOP_KINDS, Edits, State, Unrolled, points, unroll
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from hooked_rnn import HookedRNN, HookedRNNConfig

BATCH, STEPS, VOCAB, ANSWERS = 3, 4, 7, 6


CELLS = tuple(LOOP_KINDS)


STEP_KINDS = {kind for kinds in LOOP_KINDS.values() for kind in kinds}


ARCHITECTURES = list(itertools.product((1, 2, 3), ("relu", "tanh"), (True, False)))


FEW = [(2, "tanh", True), (3, "relu", False)]


ALL_POINTS = points(2)


STEP_POINTS = [point for point in ALL_POINTS if point[0] in STEP_KINDS]


ONCE_POINTS = [point for point in ALL_POINTS if point[0] not in STEP_KINDS]


exact = {"rtol": 0.0, "atol": 1e-12}


GATED_POINTS = [
    ("gru", ("recurrent", 0)),
    ("gru", ("carry", 1)),
    ("gru", ("update", 0)),
    ("gru", ("candidate_preact", 1)),
    ("gru", ("hidden", 0)),
    ("lstm", ("recurrent", 1)),
    ("lstm", ("carry", 0)),
    ("lstm", ("forget_gate", 1)),
    ("lstm", ("output_gate_preact", 0)),
    ("lstm", ("cell", 0)),
    ("lstm", ("hidden", 1)),
]
"""Of the gated cells, one point of each sort, all inside the loop: outside it they have what the vanilla cell has."""


FEW_GATED_POINTS = [
    ("gru", ("carry", 1)),
    ("gru", ("hidden", 0)),
    ("lstm", ("recurrent", 1)),
    ("lstm", ("cell", 0)),
]
"""For what takes long."""


architectures = pytest.mark.parametrize(("n_layers", "act_fn", "bias"), ARCHITECTURES)


few_architectures = pytest.mark.parametrize(("n_layers", "act_fn", "bias"), FEW)


few_architectures_of_cells = pytest.mark.parametrize(
    ("n_layers", "act_fn", "bias", "cell"),
    [*((*few, "rnn") for few in FEW), (2, "tanh", True, "gru"), (2, "tanh", False, "lstm")],
)


every_point = pytest.mark.parametrize("point", ALL_POINTS, ids=str)


step_points = pytest.mark.parametrize("point", STEP_POINTS, ids=str)


once_points = pytest.mark.parametrize("point", ONCE_POINTS, ids=str)


def of_cells(points: Iterable["Point"], gated: Iterable[tuple[str, "Point"]] = GATED_POINTS) -> pytest.MarkDecorator:
    """For these points of the vanilla cell, and some of the others."""
    return pytest.mark.parametrize(("cell", "point"), [*(("rnn", point) for point in points), *gated], ids=str)


every_point_of_cells = of_cells(ALL_POINTS)


step_points_of_cells = of_cells(STEP_POINTS)


every_point_and_a_few_gated = of_cells(ALL_POINTS, FEW_GATED_POINTS)


step_points_and_a_few_gated = of_cells(STEP_POINTS, FEW_GATED_POINTS)


every_cell = pytest.mark.parametrize("cell", CELLS)


gated_cells = pytest.mark.parametrize("cell", ["gru", "lstm"])


Point = tuple[str, int | None]


Hook = Callable[..., Any]


def make_model(
    n_layers: int = 2, act_fn: str = "tanh", bias: bool = True, seed: int = 0, cell: str = "rnn"
) -> HookedRNN:
    """A small network in float64, with biases that are not zero."""
    cfg = HookedRNNConfig(
        d_vocab=VOCAB,
        d_vocab_out=ANSWERS,
        d_model=3,
        d_hidden=4,
        n_layers=n_layers,
        cell=cell,
        act_fn=act_fn,
        bias=bias,
        seed=seed,
        dtype=torch.float64,
    )
    model = HookedRNN(cfg)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".b_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
    return model


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(*shape: int, high: int = VOCAB, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


TOKENS = integers(BATCH, STEPS)


LABELS = integers(BATCH, STEPS, high=ANSWERS, seed=1)


def by_hand(model: HookedRNN, edits: Edits | None = None, tokens: Tensor = TOKENS, **kwargs: Any) -> Unrolled:
    weights, cfg = dict(model.named_parameters()), model.cfg
    return unroll(weights, tokens, n_layers=cfg.n_layers, cell=cfg.cell, act_fn=cfg.act_fn, edits=edits, **kwargs)


def name_of(point: Point) -> str:
    kind, layer = point
    return f"hook_{kind}" if layer is None else f"blocks.{layer}.hook_{kind}"


def width_of(model: HookedRNN, point: Point) -> int:
    cfg = model.cfg
    of_all_gates = cfg.n_gates * cfg.d_hidden
    widths = {"embed": cfg.d_model, "logits": cfg.d_vocab_out, "input": of_all_gates, "recurrent": of_all_gates}
    return widths.get(point[0], cfg.d_hidden)


def random_state(model: HookedRNN, dtype: torch.dtype = torch.float64, batch: int = BATCH) -> State:
    """A state that is not zero."""
    cfg = model.cfg
    parts = tuple(random(cfg.n_layers, batch, cfg.d_hidden, seed=seed).to(dtype) for seed in (0, 1))
    return parts if cfg.cell == "lstm" else parts[0]


def parts_of(state: State) -> list[Tensor]:
    """The tensors that a network's state is made of."""
    return list(state) if isinstance(state, tuple) else [state]


def mean_loss(logits: Tensor, labels: Tensor = LABELS) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def nonlinear(x: Tensor) -> Tensor:
    """Some function of each position by itself."""
    return 1.5 * x - 0.25 + 0.5 * x.roll(1, dims=-1).sin()


def edit_at(point: Point, steps: Iterable[int], function: Callable[[Tensor], Tensor]) -> Edits:
    return {(*point, t): function for t in steps}


def returned(function: Callable[[Tensor], Tensor], t: int) -> Hook:
    def hook(x: Tensor, hook: HookPoint) -> Tensor:
        edited = x.clone()
        edited[:, t] = function(x[:, t])
        return edited

    return hook


def in_place(function: Callable[[Tensor], Tensor], t: int) -> Hook:
    def hook(x: Tensor, hook: HookPoint) -> None:
        x[:, t] = function(x[:, t].clone())

    return hook


def in_place_and_returned(function: Callable[[Tensor], Tensor], t: int) -> Hook:
    def hook(x: Tensor, hook: HookPoint) -> Tensor:
        x[:, t] = function(x[:, t].clone())
        return x

    return hook


def behind_autograd(function: Callable[[Tensor], Tensor], t: int) -> Hook:
    def hook(x: Tensor, hook: HookPoint) -> None:
        x.data[:, t] = function(x.data[:, t])

    return hook


WAYS = [returned, in_place, in_place_and_returned, behind_autograd]


def ignore(x: Tensor, hook: HookPoint) -> None:
    """Do nothing."""


def doubled(x: Tensor, hook: HookPoint) -> Tensor:
    return x * 2


def doubled_in_place(x: Tensor, hook: HookPoint) -> None:
    x *= 2


def gradient_of(cache: Any, point: Point) -> Tensor:
    return cache[f"{name_of(point)}_grad"]


def parameter_gradients(model: HookedRNN, unrolled: Unrolled, loss: Tensor | None = None) -> list[Tensor]:
    loss = mean_loss(unrolled.logits) if loss is None else loss
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]


def assert_same_parameter_gradients(model: HookedRNN, loss: Tensor, unrolled: Unrolled, expected_loss: Tensor) -> None:
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    expected = parameter_gradients(model, unrolled, expected_loss)
    for parameter, grad, wanted in zip(parameters, grads, expected, strict=True):
        assert_close(torch.zeros_like(parameter) if grad is None else grad, wanted, **exact)

"""The orthogonal gradient: no component along the weights, the same norm."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_rnn.training.orthogonal import orthogonal_gradient, orthogonalize_gradients


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(rows=st.integers(1, 6), columns=st.integers(2, 6), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_orthogonal_to_the_weights_at_the_old_norm(rows: int, columns: int, seed: int) -> None:
    weight, grad = random(rows, columns, seed=seed), random(rows, columns, seed=seed + 5000)
    result = orthogonal_gradient(weight, grad)
    assert abs(float((result * weight).sum())) < 1e-12 * float(weight.norm() * grad.norm()) + 1e-12
    torch.testing.assert_close(result.norm(), grad.norm())
    # What is left lies in the plane of the two: nothing else was added.
    torch.testing.assert_close(
        result / result.norm(), unit(grad - (grad * weight).sum() / weight.square().sum() * weight)
    )


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm()


def test_weights_of_zero_leave_the_gradient_as_it_is() -> None:
    grad = random(3, 4, seed=1)
    assert torch.equal(orthogonal_gradient(torch.zeros(3, 4, dtype=torch.float64), grad), grad)


def test_a_gradient_along_the_weights_becomes_zero() -> None:
    weight = random(3, 4, seed=1)
    assert float(orthogonal_gradient(weight, 2 * weight).norm()) < 1e-12


def test_every_parameter_by_itself() -> None:
    parameters = [random(3, 4, seed=s).requires_grad_() for s in (1, 2)] + [torch.zeros(2, requires_grad=True)]
    for parameter, seed in zip(parameters[:2], (3, 4), strict=True):
        parameter.grad = random(3, 4, seed=seed)
    orthogonalize_gradients(parameters)
    for parameter, seed in zip(parameters[:2], (3, 4), strict=True):
        assert torch.equal(parameter.grad, orthogonal_gradient(parameter.detach(), random(3, 4, seed=seed)))
    assert parameters[2].grad is None

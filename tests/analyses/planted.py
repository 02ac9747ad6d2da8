"""Things whose Fourier structure is known: an adder built by hand, circles, and random weights as the control."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jaxtyping
import torch
from torch import Tensor

from analyses import oracle
from hooked_rnn import HookedRNN, HookedRNNConfig, ModularTask

P = 31
FREQUENCIES = (5, 12, 3)
"""What the adder is made of, the strongest first."""
STRENGTHS = (1.0, 0.8, 0.6)
exact = {"rtol": 0.0, "atol": 1e-10}


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers of one seed, in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(p: int, frequency: int, turns: Tensor) -> Tensor:
    """cos and sin of 2 pi k x / p, as two columns."""
    angle = 2 * math.pi * frequency * turns.double() / p
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def circles(p: int, frequencies: Sequence[int], strengths: Sequence[float]) -> Tensor:
    """Each number as its cosine and sine of every frequency: [p, 2 * len(frequencies)]."""
    columns = [s * wave(p, k, torch.arange(p)) for k, s in zip(frequencies, strengths, strict=True)]
    return torch.cat(columns, dim=1)


def orthonormal_rows(n: int, d: int, seed: int = 0) -> Tensor:
    """n orthonormal vectors of d dimensions, as rows."""
    return torch.linalg.qr(normal(d, n, seed=seed)).Q.T


def fourier_adder(
    p: int = P,
    frequencies: Sequence[int] = FREQUENCIES,
    strengths: Sequence[float] = STRENGTHS,
    phases: int = 32,
    d_model: int = 16,
    noise: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> HookedRNN:
    """The oracle, of as many neurons for each frequency as there are phases, whether exactly right or not."""
    return oracle.fourier_adder(
        p, frequencies, strengths, neurons=phases, d_model=d_model, noise=noise, dtype=dtype, check=False
    )


def clock_adder(p: int, frequencies: Sequence[int], phases: int = 12) -> HookedRNN:
    """A network whose units meet a's wave and b's in all differences of phase, and whose logits are an exact clock's.

    As :func:`fourier_adder`, but frequency k has a unit for each pair of phases f, g: relu(cos(wa + f) + cos(wb + g)),
    read by cos(wc + f + g). Of the harmonics cos(m(wa + f) + n(wb + g)) the sum over f and g leaves m = n = 1 alone (and
    what is the same modulo the number of phases), which is cos(w(a+b-c)).
    """
    phase = 2 * math.pi * torch.arange(phases, dtype=torch.float64) / phases
    f, g = phase.repeat_interleave(phases), phase.repeat(phases)
    read_embedding = torch.block_diag(*[torch.stack([g.cos(), -g.sin()])] * len(frequencies))
    recover = 4 / phases**2 * (g[:, None] - f).cos()
    turns = torch.arange(p, dtype=torch.float64)
    read_sum = [(2 * math.pi * k / p * turns + (f + g)[:, None]).cos() for k in frequencies]
    d_model, units = 2 * len(frequencies), phases**2 * len(frequencies)
    model = HookedRNN(
        HookedRNNConfig(d_vocab=p, d_vocab_out=p, d_model=d_model, d_hidden=units, n_ctx=2, dtype=torch.float64)
    )
    weights = {
        "embed.W_E": circles(p, frequencies, [1.0] * len(frequencies)),
        "blocks.0.W_ih": read_embedding,
        "blocks.0.W_hh": torch.block_diag(*[recover] * len(frequencies)),
        "unembed.W_U": torch.cat(read_sum),
    }
    model.load_state_dict(weights)
    return model.eval()


def random_model(task: ModularTask, d_model: int = 32, d_hidden: int = 24, **fields: Any) -> HookedRNN:
    """Untrained weights of the sizes of a task, biases included where there are any."""
    sizes = {"d_vocab": task.d_vocab, "d_vocab_out": task.d_vocab_out, "d_model": d_model, "d_hidden": d_hidden}
    model = HookedRNN(HookedRNNConfig(**{**sizes, "n_ctx": task.n_ctx, **fields}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".b_" in name:
                parameter.copy_(normal(*parameter.shape, seed=len(name)) / 3)
    return model.eval()


@dataclasses.dataclass(frozen=True)
class OwnAnswers(ModularTask):
    """The task of saying what a model says, so that accuracy is agreement with it and even random weights have 100%."""

    answers: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))

    def operation(self, numbers: Tensor) -> Tensor:
        return self.answers

    @classmethod
    def of(cls, model: HookedRNN, task: ModularTask) -> "OwnAnswers":
        with torch.no_grad():
            answers = model(task.tokens)[:, -1].argmax(-1)
        return cls(task.p, task.operands, task.equals_token, answers)


def pairs(p: int) -> tuple[Tensor, Tensor]:
    """a and b of every pair in canonical order."""
    a, b = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
    return a.flatten(), b.flatten()


def family_by_hand(p: int, frequency: int, family: str) -> Tensor:
    """The functions of a family on the grid, not normalised, as columns."""
    a, b = pairs(p)
    turns = {"a": [a], "b": [b], "sum": [a + b], "difference": [a - b], "block": [a + b, a - b]}[family]
    return torch.cat([wave(p, frequency, x) for x in turns], dim=1)


def without_by_hand(x: Tensor, p: int, frequencies: Sequence[int], family: str) -> Tensor:
    """What a least squares fit on the functions of a family leaves of x [p*p, d]."""
    functions = torch.cat([family_by_hand(p, k, family) for k in frequencies], dim=1)
    return x - (functions @ (torch.linalg.pinv(functions) @ x.double())).to(x)


def accuracy(model: HookedRNN, task: ModularTask) -> float:
    """On all sequences, by the ordinary forward pass."""
    with torch.no_grad():
        return float((model(task.tokens)[:, -1].argmax(-1) == task.labels).double().mean())


@contextmanager
def unchecked() -> Iterator[None]:
    """Users run without the tests' type checks, so the package's own checks have to hold alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)

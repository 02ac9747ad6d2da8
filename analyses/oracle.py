"""The oracle: a recurrent network that adds modulo p by Fourier multiplication, exactly right by construction.

What is asked of a tool can be planted in it: which frequencies, how strong, with how many neurons, at which phases.

With w = 2 pi k / p, frequency k has N neurons at evenly spaced phases f. After one token they are relu(cos(wa + f)),
from which W_hh gets cos(wa + f) back. After two they are

    relu(cos(wa + f) + cos(wb + f)) = 2 |cos(w(a-b)/2)| relu(+-cos(w(a+b)/2 + f)),

whose second harmonic in f is cos(w(a+b) + 2f) times 2/(3 pi). W_U sums that against cos(wc + 2f), so the logit of c is

    sum_k s_k^2 N_k 2/(3 pi) |cos(w_k(a-b)/2)| (cos(w_k(a+b-c)) + alias),

where alias is a cosine in w_k c too, and at most :func:`aliasing` (N_k): N samples of a harmonic m look like those
of 2 for every m = jN +- 2, and relu's harmonic m is 3/(m^2 - 1) as large as its second.

It is exactly right on all pairs, whatever strengths and phases, if

- p is odd. For even p every odd frequency's |cos| is zero at a - b = p/2, and only odd ones tell c from c + p/2;
- the frequencies and p have no common divisor g > 1: c and c + p/g would have equal logits;
- N_k is even (relu's odd harmonics are the first alone, so W_hh's cosine is exact) and large enough that aliasing(N_k)
  < sin(pi gcd(k, p) / p). For c = a + b + d frequency k then adds 2|sin(w_k d/2)| (|sin(w_k d/2)| - aliasing) or more to
  the right answer's lead, which is above zero wherever the frequency tells the two apart.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.errors import OracleError
from analyses.fourier import FourierBasis
from hooked_rnn import HookedRNN, HookedRNNConfig

T = TypeVar("T")


def fourier_adder(
    p: int,
    frequencies: Sequence[int],
    strengths: Sequence[float] | None = None,
    neurons: int | Sequence[int] | None = None,
    phases: float | Sequence[float] = 0.0,
    d_model: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    check: bool = True,
) -> HookedRNN:
    """A one-layer ReLU network, without biases, that adds two numbers modulo p by Fourier multiplication.

    Neurons stand in the order of the frequencies, and those of one in the order of their phases: the phases that
    frequency k has are ``phases + 2 pi j / N``, j = 0..N-1.

    Args:
        p: the modulus, odd.
        frequencies: what it computes with, each in 1..p//2.
        strengths: by frequency: radius of its circle in W_E, and factor of its rows of W_U; 1 if not given.
        neurons: even number of neurons, for all frequencies or by frequency; :func:`least_neurons` or 32, whichever
            is more, if not given.
        phases: offset of the phases, for all frequencies or by frequency.
        d_model: width of the embedding, at least 2 for each frequency; exactly that if not given.
        noise: standard deviation of what is added to every weight. With noise nothing is exact.
        seed: of the embedding's axes and of the noise.
        dtype: of the parameters.
        check: refuse what would not be exactly right on all pairs; False builds it all the same.

    Raises:
        ModulusError, FrequencyError: a modulus or frequencies that do not exist.
        OracleError: arguments that do not fit each other; with ``check``, a network that would not be exactly right.
    """
    ks = FourierBasis(p).check(frequencies)
    radii = _by_frequency("strengths", 1.0 if strengths is None else strengths, ks)
    offsets = _by_frequency("phases", phases, ks)
    default = [max(32, least_neurons(p, k)) if p % 2 else 32 for k in ks]
    counts = _by_frequency("neurons", default if neurons is None else neurons, ks)
    width = 2 * len(ks) if d_model is None else d_model
    _check_sizes(ks, radii, counts, width)
    if check:
        check_exact(p, ks, counts)

    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(_normal((width, 2 * len(ks)), generator)).Q.T
    angles = [offset + 2 * math.pi / n * torch.arange(n).double() for n, offset in zip(counts, offsets, strict=True)]
    weights = {
        "embed.W_E": torch.cat([r * _wave(p, k) for k, r in zip(ks, radii, strict=True)], dim=1) @ axes,
        "blocks.0.W_ih": axes.T @ torch.block_diag(*[torch.stack([f.cos(), -f.sin()]) for f in angles]),
        "blocks.0.W_hh": torch.block_diag(*[4 / len(f) * (f[:, None] - f).cos() for f in angles]),
        "unembed.W_U": torch.cat([r * _read(p, k, f) for k, r, f in zip(ks, radii, angles, strict=True)]),
    }
    model = HookedRNN(
        HookedRNNConfig(d_vocab=p, d_vocab_out=p, d_model=width, d_hidden=sum(counts), n_ctx=2, dtype=dtype)
    )
    model.load_state_dict({n: (w + noise * _normal(w.shape, generator)).to(dtype) for n, w in weights.items()})
    return model.eval()


def aliasing(neurons: int) -> float:
    """How large what N samples mistake for the second harmonic of relu(cos) may be, relative to it.

    The sum of 3 / (m^2 - 1) over m = jN +- 2 for j >= 1, which is 3 pi / (2N) (cot(pi/N) - cot(3 pi/N)) - 1. It falls as
    pi^2 / N^2. Infinite below 5, where the second harmonic is mistaken for itself.
    """
    if neurons < 5:
        return math.inf
    return 1.5 * math.pi / neurons * (1 / math.tan(math.pi / neurons) - 1 / math.tan(3 * math.pi / neurons)) - 1


def least_neurons(p: int, frequency: int) -> int:
    """The least even number of neurons with which a frequency is sure to do no harm modulo an odd p."""
    n = 6
    while aliasing(n) >= math.sin(math.pi * math.gcd(frequency, p) / p):
        n += 2
    return n


def check_exact(p: int, frequencies: Sequence[int], neurons: Sequence[int]) -> None:
    """Raise OracleError unless the network is exactly right on all pairs, without noise, by the module's argument."""
    if p % 2 == 0:
        raise OracleError(
            f"p={p}: expected an odd modulus, as for an even one cos(pi k(a-b)/p) is zero at a - b = p/2 for every odd k, "
            "and no other frequency tells c from c + p/2"
        )
    common = math.gcd(p, *frequencies)
    if common > 1:
        raise OracleError(
            f"frequencies {list(frequencies)}: expected ones without a common divisor with p={p}; with {common}, the answers c "
            f"and c + {p // common} are the same to them"
        )
    for k, n in zip(frequencies, neurons, strict=True):
        least = least_neurons(p, k)
        if n % 2 or n < least:
            raise OracleError(
                f"{n} neurons for frequency {k}: expected an even number of at least {least}, as p is {p}"
            )


def _by_frequency(name: str, value: T | Sequence[T], frequencies: list[int]) -> list[T]:
    values = list(value) if isinstance(value, Sequence) else [value] * len(frequencies)
    if len(values) != len(frequencies):
        raise OracleError(f"{name} {values}: expected {len(frequencies)} of them, one for each of {frequencies}")
    return values


def _check_sizes(frequencies: list[int], strengths: list[float], neurons: list[int], d_model: int) -> None:
    if not frequencies:
        raise OracleError("no frequencies: expected at least one")
    if not all(0 < s < math.inf for s in strengths):
        raise OracleError(f"strengths {strengths}: expected numbers above 0")
    if min(neurons) < 1:
        raise OracleError(f"neurons {neurons}: expected at least 1 for each frequency")
    if d_model < 2 * len(frequencies):
        raise OracleError(f"d_model={d_model}: expected at least {2 * len(frequencies)}, 2 for each of {frequencies}")


def _angle(p: int, frequency: int) -> Float[Tensor, " p"]:
    """2 pi k c / p, reduced modulo p in integers first."""
    return 2 * math.pi / p * (frequency * torch.arange(p) % p).double()


def _wave(p: int, frequency: int) -> Float[Tensor, "p two"]:
    """cos and sin of each number, as two columns."""
    angle = _angle(p, frequency)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def _read(p: int, frequency: int, phases: Float[Tensor, " n"]) -> Float[Tensor, "n p"]:
    """cos(wc + 2f)."""
    return (_angle(p, frequency) + 2 * phases[:, None]).cos()


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)

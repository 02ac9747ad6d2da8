"""Clock or pizza: how a network uses its circles, by the measures of Zhong et al. 2023.

Zhong, Liu, Tegmark and Andreas, *The Clock and the Pizza* (NeurIPS 2023, arXiv 2306.17844). A clock multiplies: its
logits are cos(w(a+b-c)) whatever a - b is. A pizza adds the two operands' circles before its nonlinearity, and its
logits have the factor |cos(w(a-b)/2)|. Q_abc is the logit of c after a and b, E_a and E_b are what the embedding gives.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from analyses.adder import Adder
from analyses.attribution import singular_attribution
from analyses.errors import ActivationError, GridError
from analyses.grid import check_logits
from hooked_rnn.errors import nearest

EMBEDDING = "hook_embed"
"""Where the gradients are taken, unless another hook point is named."""
TRIPLES = 10_000
"""How many (a, b, c) are drawn for the gradients, unless all are asked for."""
CHUNK = 4096
"""How many of them go through the network at a time."""
CIRCULAR_COMPONENTS = 4
"""Of the embedding; the number is the original's."""
CONSTANT = 1e-6
"""Correct logits that differ by less than this share of the largest are all the same: the rest is rounding."""


@dataclass(frozen=True)
class Symmetry:
    """How alike the gradients of the two operands are, as means over triples (a, b, c)."""

    symmetricity: float
    """The original's gradient symmetricity: cosine of dQ_abc/dE_a and dQ_abc/dE_b. 0.99 in its pizza, 0.33 in its clock."""
    exchanged: float
    """Cosine of dQ_abc/d(first) and dQ_bac/d(second), both by E_a: 1 for any network that its operands commute in."""
    ratio: float
    """Root mean square of the first operand's gradient over the second's: below 1 where the first is forgotten."""


@dataclass(frozen=True)
class ClockOrPizza:
    """All measures of one network."""

    symmetry: Symmetry
    distance_irrelevance: float | None
    """See :func:`distance_irrelevance`."""
    circularity: float
    """See :func:`circularity`."""


def clock_or_pizza(adder: Adder, triples: int | None = TRIPLES, seed: int = 0, point: str = EMBEDDING) -> ClockOrPizza:
    """Measure a network of any kind, on its full grid.

    Raises:
        ActivationError, GridError: as :func:`gradient_symmetry`.
    """
    return ClockOrPizza(
        gradient_symmetry(adder, triples, seed, point),
        distance_irrelevance(adder.logits(), adder.p),
        circularity(adder.W_E),
    )


def gradient_symmetry(adder: Adder, triples: int | None = TRIPLES, seed: int = 0, point: str = EMBEDDING) -> Symmetry:
    """Gradient symmetricity, and what it becomes when the operands change places.

    The original (its Definition 4.1) is s_g = mean over (a, b, c) of cos(dQ_abc/dE_a, dQ_abc/dE_b), with c any answer.
    It compares the two operands of one input. In a recurrent network E_a enters a step before E_b, and nothing makes
    the two paths alike; ``exchanged`` compares one number's two paths, at (a, b) and at (b, a), and so tells the order
    of the operands apart from the clock: a clock that commutes has it at 1 whatever its s_g is.

    A gradient that vanishes has cosine 0 with every other.

    Args:
        adder: a network whose embedding is hooked as [batch, pos, d], the operands at positions 0 and 1.
        triples: how many are drawn, with replacement; None for all p^3.
        seed: of the draw.
        point: the hook point of the embedding, before positions are told apart.

    Raises:
        ActivationError: no such hook point, or not [batch, pos, d].
        GridError: fewer than one triple, or a task of other than two operands.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    n = 0
    for a, b, c in _triples(adder.p, triples, seed):
        first, second = operand_gradients(adder, a, b, c, point)
        _, swapped = operand_gradients(adder, b, a, c, point)
        sums += torch.stack(
            [
                cosine_similarity(first, second, eps=1e-300).sum(),
                cosine_similarity(first, swapped, eps=1e-300).sum(),
                first.square().sum(),
                second.square().sum(),
            ]
        ).cpu()
        n += len(a)
    ratio = (sums[2] / sums[3]).sqrt() if sums[3] > 0 else torch.zeros(())
    return Symmetry(float(sums[0] / n), float(sums[1] / n), float(ratio))


def operand_gradients(
    adder: Adder, a: Int[Tensor, " n"], b: Int[Tensor, " n"], c: Int[Tensor, " n"], point: str = EMBEDDING
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """dQ_abc/dE_a and dQ_abc/dE_b, in float64: gradients of the logit of c by the embeddings at positions 0 and 1.

    Raises:
        ActivationError: no such hook point, or not [batch, pos, d].
        GridError: a task of other than two operands.
    """
    if adder.task.operands != 2:
        raise GridError(f"a task of {adder.task.operands} operands: expected two, which are compared")
    if point not in adder.model.hook_dict:
        raise ActivationError(f"no hook point {point!r}: expected {nearest(point, adder.model.hook_dict)}")
    tokens = adder.tokens[(a * adder.p + b).to(adder.tokens.device)]
    embedded: list[Tensor] = []

    def leaf(x: Tensor, hook: Any) -> Tensor:
        if x.ndim != 3 or x.shape[1] != tokens.shape[1]:
            raise ActivationError(f"{point} has shape {list(x.shape)}: expected [batch, {tokens.shape[1]}, d]")
        embedded.append(x.detach().requires_grad_())
        return embedded[-1]

    with torch.enable_grad():
        logits = adder.model.run_with_hooks(tokens, fwd_hooks=[(point, leaf)])
        logits = logits[:, adder.position] if logits.ndim == 3 else logits
        of_c = logits.gather(1, c.to(logits.device)[:, None])
        (gradient,) = torch.autograd.grad(of_c.sum(), embedded)
    return gradient[:, 0].double(), gradient[:, 1].double()


def distance_irrelevance(logits: Float[Tensor, "pairs p"], p: int) -> float | None:
    """How much the correct logit varies at a fixed distance of the operands, beside how much it varies at all.

    With L_ab = Q_ab,a+b (Definition 4.2 of the original): q = mean over d of std_a(L_a,a+d) / std_ab(L_ab). 0 where L
    is a function of a - b alone, as in an exact pizza; 1 where it is one of a + b alone, and nearly 1 for noise, so that
    it is no sign of a clock in a network that has learned nothing. The original's pizza has 0.17, its clock 0.85. None
    where all correct logits are the same, as in an exact clock: there is no variation to be shared out.

    Raises:
        GridError: logits that are not of the whole grid and the p answers.
    """
    check_logits(logits, p)
    a = torch.arange(p)
    answers = (a[:, None] + a) % p
    correct = logits.double().view(p, p, -1).gather(2, answers.to(logits.device)[..., None]).squeeze(2)
    by_distance = correct.gather(1, answers.to(logits.device))  # row a, column d: b = a + d
    spread = correct.std(correction=0)
    if spread <= CONSTANT * correct.abs().max():
        return None
    return float(by_distance.std(dim=0, correction=0).mean() / spread)


def circularity(W_E: Float[Tensor, "p d_model"], components: int = CIRCULAR_COMPONENTS) -> float:
    """How nearly the embedding's first principal components are waves of one frequency each.

    For a component v over the tokens, c = max over k of 2/(p |v|^2) |sum_j v_j exp(2 pi i jk / p)|^2, the share of its
    power at its strongest frequency; then the plain mean over the first components, of which the original takes 4.
    Principal components: of the embedding less its mean over the tokens.

    Circles of one and the same radius have no principal components of their own, and their mixtures are not circular:
    over training the measure falls wherever two circles' radii cross.

    Raises:
        ActivationError: fewer than one component.
    """
    if components < 1:
        raise ActivationError(f"{components} components: expected at least one")
    centred = W_E.detach().double()
    centred = centred - centred.mean(0)
    purity = singular_attribution(centred, len(W_E), min(components, *centred.shape), dim=0).purity
    return float(purity.mean())


def _triples(p: int, n: int | None, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks of a, b and c."""
    if n is not None and n < 1:
        raise GridError(f"{n} triples: expected at least one, or None for all {p**3} of them")
    drawn = (
        torch.arange(p**3) if n is None else torch.randint(p**3, (n,), generator=torch.Generator().manual_seed(seed))
    )
    for chunk in drawn.split(CHUNK):
        yield chunk // p**2, chunk // p % p, chunk % p

"""Places in a model where an activation is read, or another put in: a hook point and a position."""

import re
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from analyses.adder import Adder
from analyses.errors import ActivationError
from analyses.removal import hook_at
from hooked_rnn.errors import choices, nearest

LAST = ("hook_resid_post", "hook_hidden", "mlp.hook_post")
"""How the names of the hook points end behind which little but the unembedding is left, in the order in which they are
looked for: a transformer's residual stream, a recurrent network's or an MLP's hidden state, a layer of neurons."""


@dataclass(frozen=True)
class Place:
    """A hook point and a position."""

    hook_name: str
    position: int
    """Negative ones count from the end; without meaning for an activation [batch, d]."""

    def __str__(self) -> str:
        return f"{self.hook_name} at position {self.position}"


def last_place(adder: Adder) -> Place:
    """The highest layer's hook point that ends in one of :data:`LAST`, where the model answers.

    ``resid_post`` of a transformer's last block, ``hook_hidden`` of a recurrent network's last layer, ``hook_hidden`` of an MLP.

    Raises:
        ActivationError: there is none.
    """
    for ending in LAST:
        names = [name for name in adder.model.hook_dict if name.endswith(ending) and ".steps." not in name]
        if names:
            return Place(max(names, key=_layer), adder.position)
    raise ActivationError(f"the model has no hook point whose name ends in {choices(LAST)}: expected one to be given")


def read(adder: Adder, place: Place) -> Float[Tensor, "pairs d"]:
    """The activation over all pairs.

    Raises:
        ActivationError: no such hook point or position, or an activation that is not [batch, pos, ...] or [batch, d].
    """
    known = adder.model.hook_dict
    if place.hook_name not in known:
        raise ActivationError(f"no hook point {place.hook_name!r}: expected {nearest(place.hook_name, known)}")
    return adder.activation(place.hook_name, place.position)


def logits_with(
    adder: Adder, place: Place, rows: Float[Tensor, "n d"], pairs: Int[Tensor, " n"]
) -> Float[Tensor, "n p"]:
    """The answers' logits to some pairs, with these rows put in; everything before and beside the place is the model's own."""

    def put(x: Tensor) -> Tensor:
        return rows.to(x)

    return adder.logits([(place.hook_name, hook_at(place.position, put))], adder.tokens[pairs])


def _layer(name: str) -> int:
    """The number of the block that a hook point is in; -1 outside of any."""
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) if found else -1

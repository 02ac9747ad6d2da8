"""The unembedding, as TransformerLens's readout tools ask for a model."""

import dataclasses
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hooked_rnn.components import Unembed
from hooked_rnn.config import HookedRNNConfig
from hooked_rnn.model import HookedRNN


@dataclass(frozen=True)
class Readout:
    """For ``logit_readout(Readout(model), cache["out", -1])``, whatever the model's widths.

    ``transformer_lens.tools.analysis.logit_readout`` takes vectors of width ``cfg.d_model``, which in a transformer
    is what is unembedded; here that is d_hidden. Where both are one number, it takes the model itself too.
    """

    model: HookedRNN

    @property
    def cfg(self) -> HookedRNNConfig:
        return dataclasses.replace(self.model.cfg, d_model=self.model.cfg.d_hidden)

    @property
    def unembed(self) -> Unembed:
        return self.model.unembed

    @property
    def W_U(self) -> Float[Tensor, "d_hidden d_vocab_out"]:
        return self.model.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab_out"]:
        return self.model.b_U

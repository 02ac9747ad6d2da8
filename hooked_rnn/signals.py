"""The input of a network that is driven by signals."""

from jaxtyping import Float
from torch import Tensor

from hooked_rnn.config import HookedRNNConfig
from hooked_rnn.errors import SignalError


def checked_signals(source: object, cfg: HookedRNNConfig) -> Float[Tensor, "batch pos d_in"]:
    """The signals, if they are a tensor [batch, pos, d_in] that fits the model.

    Raises:
        SignalError: another type, shape, dtype or device.
    """
    if not isinstance(source, Tensor):
        raise SignalError(f"signals are {type(source).__name__}: expected a float tensor [batch, pos, {cfg.d_in}]")
    if source.ndim != 3 or source.shape[2] != cfg.d_in:
        raise SignalError(f"signals have shape {list(source.shape)}: expected [batch, pos, d_in] with d_in {cfg.d_in}")
    if 0 in source.shape:
        raise SignalError(
            f"signals have shape {list(source.shape)}: expected at least one sequence of at least one step"
        )
    if (source.dtype, source.device) != (cfg.dtype, cfg.device):
        raise SignalError(
            f"signals are {source.dtype} on {source.device}: expected {cfg.dtype} on {cfg.device}, as the model"
        )
    return source

"""The kinds of model that can be trained, saved and compared, behind one way to build, load and save them.

``config.json`` names the kind under the key "architecture"; a file without it is of an RNN. What a transformer needs is
imported when the first one is met, since it takes TransformerLens seconds.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooked_rnn import pretrained
from hooked_rnn.baselines import lookup
from hooked_rnn.baselines.mlp import HookedMLP, HookedMLPConfig
from hooked_rnn.baselines.transformer_config import TransformerConfig
from hooked_rnn.config import HookedRNNConfig
from hooked_rnn.errors import ConfigError, ConversionError, choices
from hooked_rnn.model import HookedRNN
from hooked_rnn.model_config import ARCHITECTURE, RNN, ModelConfig, json_object


class Architecture:
    """A kind of model: how one is built, and what its weights are called where they are saved."""

    config: type[ModelConfig]
    """The class of its configuration, which names it."""
    model: Any
    """The class of the models."""

    def build(self, cfg: Any) -> Any:
        """A new model, in train mode, with weights drawn from ``cfg.seed``."""
        return self.model(cfg)

    def includes(self, model: object) -> bool:
        """Whether a model is of this kind."""
        return isinstance(model, self.model)

    def config_of(self, model: Any) -> Any:
        """The configuration that builds such a model."""
        return model.cfg

    def weights_of(self, model: Any) -> dict[str, Tensor]:
        """The weights, detached, by the names that they are saved under."""
        return model.state_dict()

    def set_weights(self, model: Any, weights: Mapping[str, Tensor]) -> None:
        """Copy weights named as :meth:`weights_of` names them into the model."""
        model.load_state_dict(dict(weights))

    def trained_parameters(self, model: Any) -> dict[str, nn.Parameter]:
        """The parameters that an optimizer is to change, by stable names."""
        return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def runs_on(self, cfg: Any, n_positions: int) -> bool:
        """Whether a model runs on sequences of this length; a recurrent network on any."""
        return True

    def looks_up(self, model: Any) -> bool:
        """Whether :meth:`last_logits` looks up what a token decides alone; if not, it is the model's forward pass."""
        return False

    def last_logits(self, model: Any, tokens: Int[Tensor, "n pos"]) -> Float[Tensor, "n d_vocab_out"]:
        """The logits where the answer is read, at the last position."""
        logits: Tensor = model(tokens)
        return logits[:, -1] if logits.ndim == 3 else logits

    def move(self, model: Any, device: torch.device | str, dtype: torch.dtype | None) -> Any:
        """The model, on a device and in a dtype; None for as it is."""
        return model.to(device, dtype)


class RecurrentNetwork(Architecture):
    config = HookedRNNConfig
    model = HookedRNN


class FeedForwardNetwork(Architecture):
    config = HookedMLPConfig
    model = HookedMLP

    def runs_on(self, cfg: HookedMLPConfig, n_positions: int) -> bool:
        return n_positions == cfg.n_ctx

    def looks_up(self, model: HookedMLP) -> bool:
        return type(model).forward is HookedMLP.forward and not lookup.has_hooks(model)

    def last_logits(self, model: HookedMLP, tokens: Int[Tensor, "n pos"]) -> Float[Tensor, "n d_vocab_out"]:
        return lookup.mlp_logits(model, tokens) if self.looks_up(model) else super().last_logits(model, tokens)


class Transformer(Architecture):
    """TransformerLens's ``TransformerBridge``; the weights' names and shapes are HookedTransformer's."""

    config = TransformerConfig

    def build(self, cfg: Any) -> Any:
        return _transformer().build_transformer(cfg)

    def includes(self, model: object) -> bool:
        bridge = sys.modules.get("transformer_lens.model_bridge.transformer_bridge")  # else there can be no such model
        return bridge is not None and isinstance(model, bridge.TransformerBridge)

    def config_of(self, model: Any) -> Any:
        return _transformer().config_of(model)

    def weights_of(self, model: Any) -> dict[str, Tensor]:
        return _transformer().weights_of(model)

    def set_weights(self, model: Any, weights: Mapping[str, Tensor]) -> None:
        _transformer().set_weights(model, weights)

    def trained_parameters(self, model: Any) -> dict[str, nn.Parameter]:
        return _transformer().trained_parameters(model)

    def runs_on(self, cfg: TransformerConfig, n_positions: int) -> bool:
        return n_positions <= cfg.n_ctx

    def looks_up(self, model: Any) -> bool:
        return int(model.cfg.n_layers) == 1 and not lookup.has_hooks(model)

    def last_logits(self, model: Any, tokens: Int[Tensor, "n pos"]) -> Float[Tensor, "n d_vocab_out"]:
        return lookup.transformer_logits(model, tokens) if self.looks_up(model) else super().last_logits(model, tokens)

    def move(self, model: Any, device: torch.device | str, dtype: torch.dtype | None) -> Any:
        model.to(device, print_details=False)
        return model if dtype is None else model.to(dtype, print_details=False)


ARCHITECTURES: dict[str, Architecture] = {
    kind.config.architecture: kind for kind in (RecurrentNetwork(), Transformer(), FeedForwardNetwork())
}
"""Every kind of model, by the name that ``config.json`` has for it."""


def build_model(cfg: ModelConfig) -> Any:
    """A new model of whatever architecture, in train mode, with weights drawn from ``cfg.seed``."""
    return ARCHITECTURES[cfg.architecture].build(cfg)


def architecture_of(model: object) -> Architecture:
    """The kind that a model is of.

    Raises:
        ConversionError: of none.
    """
    for kind in ARCHITECTURES.values():
        if kind.includes(model):
            return kind
    raise ConversionError(f"a {type(model).__name__}: expected a HookedRNN, a TransformerBridge or a HookedMLP")


def model_config(model: object) -> Any:
    """A model's configuration: HookedRNNConfig, TransformerConfig or HookedMLPConfig.

    Raises:
        ConversionError: a model of another kind, or a transformer that TransformerConfig cannot describe.
    """
    return architecture_of(model).config_of(model)


def load_model(
    name: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, **hub: Any
) -> Any:
    """A model of whatever architecture, in eval mode: HookedRNN, TransformerBridge or HookedMLP.

    Args:
        name: an embedded model that ``hooked-rnn models`` lists, a run directory (of a run that has not finished, the last
            checkpoint is taken), or a Hub id "owner/name".
        device, dtype: where and as what the weights are held.
        hub: for the Hub ``revision``, ``token``, ``cache_dir``, ``force_download`` and ``local_files_only``.

    Raises:
        UnknownModelError: none of the three.
        RunDirectoryError: a directory that holds no model.
        WeightsError: a weights file that is cut short, altered, or of another architecture.
        ConfigError: a configuration that cannot be.
    """
    directory = pretrained.local_directory(name)
    if directory is None:
        with pretrained.hub_errors(str(name)):
            directory = pretrained.download(str(name), **hub)
    elif hub:
        raise TypeError(
            f"load_model got {choices(hub)}, which only a model from the Hub has: {str(name)!r} is on this disk"
        )
    return _load(directory, device, dtype)


def save_model(model: object, directory: str | Path) -> None:
    """Write a model's ``config.json`` and ``model.safetensors``, each atomically; :func:`load_model` reads them.

    The directory is made where there is none. A transformer's weights are named as HookedTransformer names them.

    Raises:
        ConversionError: a model of another kind, or a transformer that TransformerConfig cannot describe.
    """
    kind = architecture_of(model)
    cfg, weights = kind.config_of(model), kind.weights_of(model)
    Path(directory).mkdir(parents=True, exist_ok=True)
    pretrained.write(Path(directory), cfg, weights)


def config_from_json(text: str) -> Any:
    """The configuration, of whatever architecture, that a ``config.json`` holds.

    Raises:
        ConfigError: no JSON object, an unknown architecture, or values that cannot be.
    """
    values = json_object(text)
    name = values.get(ARCHITECTURE, RNN)
    if name not in ARCHITECTURES:
        raise ConfigError(f"{ARCHITECTURE}={name!r} in the model's configuration: expected {choices(ARCHITECTURES)}")
    return ARCHITECTURES[name].config.from_dict(values)


def _load(directory: Path, device: torch.device | str, dtype: torch.dtype | None) -> Any:
    cfg, weights, path = pretrained.read(directory, config_from_json)
    kind = ARCHITECTURES[cfg.architecture]
    model = kind.move(kind.build(cfg), device, dtype)  # before the weights come, or they would be rounded on the way
    model.loaded_from = path
    pretrained.check_fit(weights, kind.weights_of(model), directory)
    kind.set_weights(model, weights)
    return model.eval()


def _transformer() -> Any:
    from hooked_rnn.baselines import transformer

    return transformer

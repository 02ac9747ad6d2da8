"""hooked_rnn: recurrent networks with TransformerLens hook points."""

from hooked_rnn.architectures import build_model, load_model, model_config, save_model
from hooked_rnn.baselines.mlp import HookedMLP, HookedMLPConfig
from hooked_rnn.baselines.transformer_config import TransformerConfig
from hooked_rnn.config import HookedRNNConfig
from hooked_rnn.hook_points import ObservingHook
from hooked_rnn.loaders.load import LoadedModel, load_checkpoint
from hooked_rnn.model import HookedRNN
from hooked_rnn.recurrent import RecurrentBlock
from hooked_rnn.tasks import ModularAddition, ModularTask
from hooked_rnn.training.config import TrainConfig
from hooked_rnn.training.loop import Run, train

__all__ = [
    "HookedMLP",
    "HookedMLPConfig",
    "HookedRNN",
    "HookedRNNConfig",
    "LoadedModel",
    "ModularAddition",
    "ModularTask",
    "ObservingHook",
    "RecurrentBlock",
    "Run",
    "TrainConfig",
    "TransformerConfig",
    "build_model",
    "load_checkpoint",
    "load_model",
    "model_config",
    "save_model",
    "train",
]

"""hooked_rnn: recurrent networks with TransformerLens hook points."""

from hooked_rnn.config import HookedRNNConfig
from hooked_rnn.hook_points import ObservingHook
from hooked_rnn.model import HookedRNN
from hooked_rnn.recurrent import RecurrentBlock
from hooked_rnn.tasks import ModularAddition, ModularTask
from hooked_rnn.training.config import TrainConfig
from hooked_rnn.training.loop import Run, train

__all__ = [
    "HookedRNN",
    "HookedRNNConfig",
    "ModularAddition",
    "ModularTask",
    "ObservingHook",
    "RecurrentBlock",
    "Run",
    "TrainConfig",
    "train",
]

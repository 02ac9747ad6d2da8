"""A HookedRNN under jaxtyping's and beartype's import hooks on TransformerLens itself: its annotations accept the model."""

import subprocess
import sys

from tool_verdicts import works

PROGRAM = """
from jaxtyping import install_import_hook
install_import_hook(["transformer_lens", "hooked_rnn"], "beartype.beartype")
import torch
from hooked_rnn import HookedRNN, HookedRNNConfig
from hooked_rnn.readout import Readout
from transformer_lens import SVDInterpreter, patching
from transformer_lens.model_protocol import TrainableTransformerLensModel, TransformerLensModel
from transformer_lens.tools import analysis
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient
from transformer_lens.tools.training import TrainConfig, train

metric = lambda logits: logits[:, -1, 0].sum()


def patch(model, tokens, cache):
    setter = patching.layer_pos_patch_setter
    axes = ("layer", "pos")
    return patching.generic_activation_patch(model, tokens, cache, metric, setter, "hidden", index_axis_names=axes)


for cell in ("rnn", "lstm"):
    model = HookedRNN(HookedRNNConfig(d_vocab=7, d_vocab_out=6, d_model=3, d_hidden=4, n_layers=2, cell=cell)).eval()
    assert isinstance(model, TransformerLensModel)
    assert isinstance(model, TrainableTransformerLensModel)
    model.set_use_step_hooks(True, 3)
    tokens = torch.arange(6).view(2, 3)
    _, cache = model.run_with_cache(tokens)
    assert patch(model, tokens.flip(0), cache).shape == (2, 3)
    assert cache.stack_activation("hidden").shape == (2, 2, 3, 4)
    assert cache.logit_attrs(cache["out", -1][None], tokens[:, :1] % 6).shape == (1, 2, 3)
    assert analysis.logit_readout(Readout(model), cache["out", -1]).values.shape == (2, 3, 6)
    name = "blocks.0.steps.1.hook_hidden"
    assert cache_activation_and_gradient(model, tokens, metric, names_filter=name).gradients[name].shape == (2, 4)
    task = lambda tokens: model(tokens)[:, -1]
    result = analysis.fit_das(model, name, tokens, tokens.flip(0), torch.tensor([0, 1]), task, rank=1, epochs=1)
    assert result.basis.shape == (4, 1)
    analysis.reinitialized(model, 0)
    try:
        SVDInterpreter(model)
    except Exception as error:
        assert "FactoredMatrix" in str(error), error

try:  # the control: the annotations are looked at
    patch([], tokens, cache)
except Exception as error:
    assert "TypeCheckError" in type(error).__name__ or "Beartype" in type(error).__name__, error
else:
    raise AssertionError("a list is no model")
"""


@works("TransformerLensModel.*", "TrainableTransformerLensModel.*")
def test_transformer_lens_s_annotations_accept_the_model() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

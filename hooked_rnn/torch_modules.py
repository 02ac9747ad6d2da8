"""Between a HookedRNN and the torch modules that compute the same.

Gates stand in torch's order in both, so a weight is a transpose and nothing else, and a round trip keeps every bit.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from hooked_rnn.config import HookedRNNConfig
from hooked_rnn.errors import ConversionError, choices

RECURRENT_MODULES: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
CELL_MODULES: dict[str, type[nn.RNNCellBase]] = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}

Embedding = nn.Embedding | nn.Linear
Recurrent = nn.RNNBase | nn.RNNCellBase | Sequence[nn.RNNCellBase] | nn.ModuleList


class TorchModules(NamedTuple):
    """What computes the same as a HookedRNN: ``readout(rnn(embedding(x))[0])``, or that loop written with cells."""

    embedding: nn.Embedding | nn.Linear
    rnn: nn.RNNBase | nn.ModuleList
    """One module; or, where cells were asked for, one cell for each layer."""
    readout: nn.Linear


def config_of(embedding: Embedding | None, rnn: Recurrent, readout: nn.Linear) -> HookedRNNConfig:
    """The configuration of the HookedRNN that computes what these modules do.

    Raises:
        ConversionError: a module of another kind, with an option that HookedRNN does not have, or that
            does not fit the others.
    """
    _check_kinds(embedding, rnn, readout)
    parts = _parts(rnn)
    first = parts[0]
    sizes = _input_sizes(embedding, _size(first, "input_size"))
    _check_fit(embedding, parts, readout)
    _check_one_place([embedding, *parts, readout])
    weight = readout.weight
    return HookedRNNConfig(
        **sizes,
        d_vocab_out=readout.out_features,
        d_hidden=_size(first, "hidden_size"),
        n_layers=first.num_layers if isinstance(first, nn.RNNBase) else len(parts),
        cell=_cell(first),
        act_fn=cast(str, getattr(first, "nonlinearity", "relu")),
        bias=bool(first.bias),
        unembed_bias=readout.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )


def weights_of(embedding: Embedding | None, rnn: Recurrent, readout: nn.Linear) -> dict[str, Tensor]:
    """The parameters of that HookedRNN, by name: copies."""
    weights: dict[str, Tensor | None] = {"unembed.W_U": readout.weight.T, "unembed.b_U": readout.bias}
    if embedding is None:
        size = _size(_parts(rnn)[0], "input_size")
        weights["embed.W_E"] = torch.eye(size, dtype=readout.weight.dtype, device=readout.weight.device)
    elif isinstance(embedding, nn.Embedding):
        weights["embed.W_E"] = embedding.weight
    else:
        weights |= {"embed.W_E": embedding.weight.T, "embed.b_E": embedding.bias}
    for layer, get in enumerate(_layers(rnn)):
        block = f"blocks.{layer}"
        weights |= {f"{block}.W_ih": get("weight_ih").T, f"{block}.W_hh": get("weight_hh").T}
        if _parts(rnn)[0].bias:
            weights |= {f"{block}.b_ih": get("bias_ih"), f"{block}.b_hh": get("bias_hh")}
    return {name: weight.detach().clone() for name, weight in weights.items() if weight is not None}


def modules_of(cfg: HookedRNNConfig, weights: Mapping[str, Tensor], batch_first: bool, cells: bool) -> TorchModules:
    """The torch modules with a HookedRNN's configuration and parameters.

    Raises:
        ConversionError: a cell that torch has no module for.
    """
    if cfg.cell not in RECURRENT_MODULES:
        raise ConversionError(f"torch has no module for the cell {cfg.cell!r}: expected {choices(RECURRENT_MODULES)}")
    embedding: nn.Embedding | nn.Linear
    if cfg.input == "tokens":
        embedding = _empty(nn.Embedding, cfg, cfg.d_vocab, cfg.d_model)
        _fill(embedding, {"weight": weights["embed.W_E"]})
    else:
        embedding = _empty(nn.Linear, cfg, cfg.d_in, cfg.d_model, bias=cfg.embed_bias)
        _fill(embedding, {"weight": weights["embed.W_E"].T, "bias": weights.get("embed.b_E")})
    readout = _empty(nn.Linear, cfg, cfg.d_hidden, cfg.d_vocab_out, bias=cfg.unembed_bias)
    _fill(readout, {"weight": weights["unembed.W_U"].T, "bias": weights.get("unembed.b_U")})

    rnn = _cells(cfg, weights) if cells else _layers_in_one(cfg, weights, batch_first)
    return TorchModules(embedding, rnn, readout)


def _layers_in_one(cfg: HookedRNNConfig, weights: Mapping[str, Tensor], batch_first: bool) -> nn.RNNBase:
    sizes = {"num_layers": cfg.n_layers, "bias": cfg.bias, "batch_first": batch_first}
    rnn = _empty(RECURRENT_MODULES[cfg.cell], cfg, cfg.d_model, cfg.d_hidden, **sizes, **_nonlinearity(cfg))
    for layer in range(cfg.n_layers):
        _fill(rnn, {f"{name}_l{layer}": weight for name, weight in _of_layer(weights, layer).items()})
    return cast(nn.RNNBase, rnn)


def _cells(cfg: HookedRNNConfig, weights: Mapping[str, Tensor]) -> nn.ModuleList:
    cells = nn.ModuleList()
    for layer in range(cfg.n_layers):
        d_in = cfg.d_hidden if layer else cfg.d_model
        cells.append(_empty(CELL_MODULES[cfg.cell], cfg, d_in, cfg.d_hidden, bias=cfg.bias, **_nonlinearity(cfg)))
        _fill(cells[layer], _of_layer(weights, layer))
    return cells


def _nonlinearity(cfg: HookedRNNConfig) -> dict[str, Any]:
    return {"nonlinearity": cfg.act_fn} if cfg.cell == "rnn" else {}


def _of_layer(weights: Mapping[str, Tensor], layer: int) -> dict[str, Tensor | None]:
    """A layer's parameters by the names that a torch cell has for them."""
    block = f"blocks.{layer}"
    matrices = {f"weight_{kind}": weights[f"{block}.W_{kind}"].T for kind in ("ih", "hh")}
    return {**matrices, **{f"bias_{kind}": weights.get(f"{block}.b_{kind}") for kind in ("ih", "hh")}}


def _check_kinds(embedding: object, rnn: object, readout: object) -> None:
    if embedding is not None and not isinstance(embedding, (nn.Embedding, nn.Linear)):
        raise ConversionError(
            f"the embedding is {type(embedding).__name__}: expected nn.Embedding, nn.Linear, or None where the signals go straight in"
        )
    if isinstance(embedding, nn.Embedding) and embedding.max_norm is not None:
        raise ConversionError(
            f"the embedding has max_norm={embedding.max_norm}: expected None, HookedRNN does not renormalise"
        )
    if not isinstance(readout, nn.Linear):
        raise ConversionError(f"the readout is {type(readout).__name__}: expected nn.Linear")
    for part in _parts(rnn):
        _cell(part)
        if isinstance(part, nn.RNNBase) and part is not rnn:
            raise ConversionError(
                f"the recurrent part is a list with {type(part).__name__} in it: expected that by itself, or a list of cells, one for each layer"
            )
    if isinstance(rnn, nn.RNNBase):
        _check_options(rnn)
    for module in (embedding, *_parts(rnn), readout):
        _check_forward(module)
        _check_no_hooks(module)


def _check_forward(module: Any) -> None:
    """That a class of a torch module does what that module does; one that only has its weights made otherwise does."""
    classes: list[Any] = [nn.Embedding, nn.Linear, *RECURRENT_MODULES.values(), *CELL_MODULES.values()]
    for known in classes:
        if isinstance(module, known) and (type(module).forward is not known.forward or "forward" in vars(module)):
            raise ConversionError(
                f"{type(module).__name__} has a forward of its own: expected nn.{known.__name__}'s, as nothing else is known to be the same"
            )


def _check_no_hooks(module: Any) -> None:
    """That no hook of the module's changes what it computes, or makes its weights anew, as pruning's do."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()] if module is not None else []
    if hooks:
        raise ConversionError(
            f"{type(module).__name__} has the hook {hooks[0]!r}: expected none, as what it does is not known; remove it first"
        )


def _check_options(rnn: nn.RNNBase) -> None:
    if rnn.bidirectional:
        raise ConversionError("the rnn has bidirectional=True: expected False, as HookedRNN runs forward in time only")
    if rnn.proj_size:
        raise ConversionError(f"the rnn has proj_size={rnn.proj_size}: expected 0, as HookedRNN has no projections")
    if rnn.dropout and rnn.training:
        raise ConversionError(
            f"the rnn has dropout={rnn.dropout:g} and is in training: expected dropout=0, or rnn.eval() first; HookedRNN has none"
        )


def _parts(rnn: object) -> list[Any]:
    """The recurrent part as a list: one module, or one cell for each layer."""
    parts = list(rnn) if isinstance(rnn, (nn.ModuleList, Sequence)) else [rnn]
    if not parts:
        raise ConversionError("the recurrent part is empty: expected at least one layer")
    return parts


def _cell(part: object) -> str:
    """The name of a recurrent module's cell."""
    for modules in (RECURRENT_MODULES, CELL_MODULES):
        for name, module in modules.items():
            if isinstance(part, module):
                return name
    known = [f"nn.{module.__name__}" for modules in (RECURRENT_MODULES, CELL_MODULES) for module in modules.values()]
    raise ConversionError(
        f"the recurrent part is {type(part).__name__}: expected {', '.join(known)}, or a list of such cells, one for each layer"
    )


def _input_sizes(embedding: Embedding | None, d_model: int) -> dict[str, Any]:
    if isinstance(embedding, nn.Embedding):
        return {"d_vocab": embedding.num_embeddings, "d_model": embedding.embedding_dim}
    d_in = d_model if embedding is None else embedding.in_features
    width = d_model if embedding is None else embedding.out_features
    bias = embedding is not None and embedding.bias is not None
    return {"input": "continuous", "d_in": d_in, "d_model": width, "embed_bias": bias}


def _check_fit(embedding: Embedding | None, parts: list[Any], readout: nn.Linear) -> None:
    """That every part's output is as wide as what the next one takes, and that stacked cells are alike."""
    first = parts[0]
    width = _input_sizes(embedding, _size(first, "input_size"))["d_model"]
    if width != first.input_size:
        raise ConversionError(
            f"the embedding's output has width {width}: expected {first.input_size}, the rnn's input_size"
        )
    for below, part in pairwise(parts):
        if not isinstance(part, nn.RNNCellBase) or type(part) is not type(below):
            raise ConversionError(f"a {type(part).__name__} above a {type(below).__name__}: expected cells of one kind")
        for name, expected in (
            ("input_size", below.hidden_size),
            ("hidden_size", below.hidden_size),
            ("bias", below.bias),
            ("nonlinearity", getattr(below, "nonlinearity", None)),
        ):
            if getattr(part, name, None) != expected:
                raise ConversionError(
                    f"a stacked cell has {name}={getattr(part, name)}: expected {expected}, as the one below"
                )
    if readout.in_features != first.hidden_size:
        raise ConversionError(
            f"the readout takes width {readout.in_features}: expected {first.hidden_size}, the rnn's hidden_size"
        )


def _check_one_place(modules: Sequence[nn.Module | None]) -> None:
    places = {(p.dtype, p.device) for module in modules if module is not None for p in module.parameters()}
    if len(places) > 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in places))
        raise ConversionError(f"the parameters are {found}: expected one dtype and one device")


def _layers(rnn: Recurrent) -> list[Callable[[str], Tensor]]:
    """For each layer, how to get a parameter by torch's name for it."""
    if isinstance(rnn, nn.RNNBase):
        return [lambda name, layer=layer: getattr(rnn, f"{name}_l{layer}") for layer in range(rnn.num_layers)]
    return [lambda name, cell=cell: getattr(cell, name) for cell in _parts(rnn)]


def _size(part: Any, name: str) -> int:
    return cast(int, getattr(part, name))


def _empty(module: type[Any], cfg: HookedRNNConfig, *args: Any, **kwargs: Any) -> Any:
    """A module whose parameters nobody has drawn: torch would take its global random state for that."""
    return module(*args, **kwargs, device="meta", dtype=cfg.dtype).to_empty(device=cfg.device)


def _fill(module: nn.Module, weights: Mapping[str, Tensor | None]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            if weight is not None:
                module.get_parameter(name).copy_(weight)

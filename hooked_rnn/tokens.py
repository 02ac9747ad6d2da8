"""From what a user writes to a batch of token ids."""

import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from hooked_rnn.errors import TokenError
from hooked_rnn.transforms import values_are_hidden

TokensLike = Tensor | str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


@runtime_checkable
class TakesTokens(Protocol):
    """The configuration of a model whose input is tokens."""

    @property
    def d_vocab(self) -> int | None: ...
    @property
    def d_vocab_out(self) -> int: ...
    @property
    def device(self) -> torch.device: ...


_SUM = re.compile(r"\s*\d+(\s*[+,\s]\s*\d+)*\s*=?\s*")


def to_tokens(source: TokensLike, cfg: TakesTokens) -> Int[Tensor, "batch pos"]:
    """Token ids [batch, pos] from a tensor, nested lists, a string such as "12 + 55", or several.

    In a string, numbers stand for themselves, between them is a plus, a comma or a space, and a final "="
    is the token d_vocab_out where the model has one more token than answers.

    Raises:
        TokenError: floats, an id out of range, an empty batch or sequence, a ragged list, another
            shape or device, a string that is no such sum.
    """
    if isinstance(source, Tensor):
        return _checked(source, cfg)
    if isinstance(source, str):
        source = [source]
    if not isinstance(source, Sequence) or not source:
        raise TokenError(
            f"tokens are {source!r}: expected an integer tensor [batch, pos], nested lists, or strings such as '12 + 55'"
        )
    rows: list[Any] = [_parse(row, cfg) if isinstance(row, str) else row for row in source]
    if all(isinstance(row, int) for row in rows):
        rows = [rows]  # one sequence
    try:
        tokens = torch.tensor(rows, device=cfg.device)
    except (ValueError, TypeError, RuntimeError) as error:
        raise TokenError(f"tokens {rows!r} do not make a batch of sequences of one length: {error}") from error
    return _checked(tokens, cfg)


def _parse(text: str, cfg: TakesTokens) -> list[int]:
    if not _SUM.fullmatch(text):
        raise TokenError(
            f"cannot read {text!r}: expected numbers with a plus, a comma or a space between them, such as '12 + 55'"
        )
    ids = [int(number) for number in re.findall(r"\d+", text)]
    if "=" in text:
        if cfg.d_vocab != cfg.d_vocab_out + 1:
            raise TokenError(
                f"{text!r} ends in '=': this model has {cfg.d_vocab} tokens for {cfg.d_vocab_out} answers, and so no token for it"
            )
        ids.append(cfg.d_vocab_out)
    return ids


def _checked(tokens: Tensor, cfg: TakesTokens) -> Tensor:
    if tokens.ndim != 2:
        raise TokenError(f"tokens have shape {list(tokens.shape)}: expected [batch, pos]")
    if 0 in tokens.shape:
        raise TokenError(
            f"tokens have shape {list(tokens.shape)}: expected at least one sequence of at least one token"
        )
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TokenError(f"tokens are {tokens.dtype}: expected an integer dtype such as torch.int64")
    if tokens.device != cfg.device:
        raise TokenError(f"tokens are on {tokens.device}: expected {cfg.device}, where the model is")
    tokens = tokens.long()
    if values_are_hidden(tokens):
        return tokens
    low, high = (int(x) for x in tokens.aminmax())
    assert cfg.d_vocab is not None  # the model saw to it that its input is tokens
    if low < 0 or high >= cfg.d_vocab:
        raise TokenError(
            f"token id {low if low < 0 else high}: expected 0 to {cfg.d_vocab - 1}, as d_vocab is {cfg.d_vocab}"
        )
    return tokens

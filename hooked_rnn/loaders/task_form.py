"""Which task a model's sizes are those of: the modulus, the operands, and whether the sequence ends in '='."""

from hooked_rnn.errors import TaskError, choices
from hooked_rnn.tasks import ModularAddition


def task_of_sizes(
    d_vocab: int, d_vocab_out: int, n_ctx: int | None, p: int | None, ends_in_equals: bool, source: str
) -> ModularAddition:
    """Addition of as many numbers as fit a sequence.

    One token more than numbers is '=', which ends the sequence, unless that is two tokens long.

    Args:
        d_vocab, d_vocab_out: number of tokens and of answers that there are weights for.
        n_ctx: length of a sequence; None for two operands.
        p: the modulus, where it is known.
        ends_in_equals: take the last token to be '=' where there are as many answers as tokens, and three positions or more:
            what the paper's transformer has, whose last answer is never given.
        source: what to call the model in an error.

    Raises:
        TaskError: sizes that are no task's, or another modulus than they allow.
    """
    allowed = [n for n in sorted({d_vocab - 1, d_vocab}) if n in (d_vocab_out - 1, d_vocab_out) and n >= 2]
    sizes = f"{source} has weights for {d_vocab} tokens and {d_vocab_out} answers"
    if not allowed:
        raise TaskError(f"{sizes}: expected p or p + 1 of each, for numbers modulo p and '='")
    if p is None:
        spare = d_vocab == d_vocab_out and ends_in_equals and n_ctx is not None and n_ctx > 2
        p = d_vocab - 1 if spare and d_vocab - 1 in allowed else min(d_vocab, d_vocab_out)
    if p not in allowed:
        raise TaskError(f"p={p}: expected {choices(allowed)}, as {sizes}")
    equals = d_vocab == p + 1 and n_ctx != 2
    operands = 2 if n_ctx is None else n_ctx - equals
    return ModularAddition(p, operands, equals)

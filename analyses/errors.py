"""Errors about what an analysis was asked to do."""

from hooked_rnn.errors import HookedRNNError


class ModulusError(HookedRNNError, ValueError):
    """A modulus that cannot be, or that does not fit what it is used on."""


class FrequencyError(HookedRNNError, ValueError):
    """A frequency that the modulus does not have."""


class FamilyError(HookedRNNError, ValueError):
    """A family of functions, a mode or a position that an operator does not know."""


class GridError(HookedRNNError, ValueError):
    """A batch that is not the full grid of pairs, for an operator that needs it."""


class OracleError(HookedRNNError, ValueError):
    """An analytic network that cannot be built, or that would not be exactly right."""


class RuleError(HookedRNNError, ValueError):
    """A rule, or a threshold of one, that nobody knows."""


class ActivationError(HookedRNNError, ValueError):
    """An activation that an operator cannot be about, such as one without a position axis."""


class ReportError(HookedRNNError, ValueError):
    """A model that the report cannot be about, or a directory that it cannot be written to."""

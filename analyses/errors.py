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


class RemovalSiteError(HookedRNNError, ValueError):
    """A place that the model does not have, or that frequencies cannot be removed from in the way asked for."""


class ReportError(HookedRNNError, ValueError):
    """A model that the report cannot be about, or a directory that it cannot be written to."""


class EdgeError(HookedRNNError, ValueError):
    """A node or an edge that the unrolled network does not have."""


class PathError(HookedRNNError, ValueError):
    """A receiver that no path from the sender reaches."""


class SourceError(HookedRNNError, ValueError):
    """A run to patch from that does not fit the run to be patched."""


class MetricError(HookedRNNError, ValueError):
    """A metric whose value is no scalar, or has no gradient where one is needed."""


class StitchingError(HookedRNNError, ValueError):
    """Two models that cannot be stitched together, or a map that cannot be fitted."""


class CompareError(HookedRNNError, ValueError):
    """Models that cannot be laid side by side."""

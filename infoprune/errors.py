"""Every error that infoprune raises on purpose.

A message names the layer or option at fault, the two conflicting values, and the remedy. The object that was being
changed is restored.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InfopruneError(Exception):
    """Base of all errors raised by infoprune."""


class ConfigurationError(InfopruneError, ValueError):
    """An option has a value that cannot work, or names something that does not exist."""


class TraceError(InfopruneError):
    """The model could not be run on its example inputs, or its structure could not be traced."""


class PlanError(InfopruneError):
    """A pruning plan is malformed or does not belong to this model."""


class BudgetError(InfopruneError):
    """A budget cannot be met by any widths that the structure allows."""


class SurgeryError(InfopruneError):
    """A model or optimizer cannot be shrunk safely; nothing was changed."""


class ProcessError(SurgeryError):
    """Another process of a run failed, so this one stops too; the message is that process's error."""


class VerificationError(InfopruneError):
    """A cut would change the outputs of the model; nothing was changed."""


class CheckpointError(InfopruneError):
    """A checkpoint or saved model cannot be read, or belongs to another architecture."""


class ExportError(InfopruneError):
    """A model cannot be exported; the message names the operator or the line of code at fault."""


class DataError(InfopruneError):
    """A data set or calibration set is missing, incomplete or unsuitable."""


def nearest(name: object, known: Iterable[object]) -> str:
    """Return ``", did you mean 'x'?"`` for the known name closest to ``name``, or an empty string.

    Args:
        name: the unknown name.
        known: the names that exist.

    Example:
        >>> nearest("capcity", ["l1", "capacity"])
        ", did you mean 'capacity'?"
    """
    by_lower_case = {str(one).lower(): one for one in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1)
    return f", did you mean {by_lower_case[close[0]]!r}?" if close else ""

"""The record of a pruning run as plain data: the source of every table, chart and report.

A `RunRecord` holds primitives only, so it can be written to JSON, sent to a logger, compared with another run or
rendered years later without the model. Reading checks every field and says which one is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from infoprune.errors import CheckpointError, nearest
from infoprune.files import write_text_whole
from infoprune.version import __version__

FORMAT = 1
"""Number of the record's layout; raised whenever an older reader would misread a newer record."""


@dataclass
class LayerRow:
    """One convolution or linear layer, before and after.

    Attributes:
        name: module path, such as ``"layer1.0.conv1"``.
        group: name of the channel group that its filters belong to.
        kind: ``"conv"`` or ``"linear"``.
        channels_before: output channels before.
        channels_after: output channels after.
        params_before: parameters of the layer before.
        params_after: parameters of the layer after.
        macs_before: multiply-accumulates per example before.
        macs_after: multiply-accumulates per example after.
    """

    name: str
    group: str
    kind: str
    channels_before: int
    channels_after: int
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int


@dataclass
class Totals:
    """Cost and metrics of the whole model at one moment.

    Attributes:
        macs: multiply-accumulates per example.
        params: number of parameters.
        latency_s: median seconds of one forward pass on the example input, None if not measured.
        latency_spread_s: spread of that measurement in seconds, None if not measured.
        metrics: measured metrics by name; None stands for a value that was not finite.
    """

    macs: int
    params: int
    latency_s: float | None = None
    latency_spread_s: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)


@dataclass
class EventRecord:
    """One pruning event: its scores, the units kept, and the remaining cost.

    Attributes:
        index: 0 for the first event of the run.
        epoch: epoch at whose start it happened; -1 outside of any training.
        global_step: optimizer steps taken before it.
        criterion: name of the criterion that scored.
        macs: multiply-accumulates per example after the event.
        params: parameters after the event.
        layers: every layer, before and after this event.
        scores: channel group -> score of each unit that it had before this event.
        kept: channel group -> units that stayed, numbered as before this event.
        metrics_before: last validation metrics before the event.
        metrics_cut: validation metrics right after the event, before any training; empty if that was not asked for.
        metrics_after: last validation metrics before the next event, or at the end.
        curves: channel group -> units that stay -> what cutting this group alone to them costs, if that was measured.
        details: layer -> named figures that the criterion or the allocation published (rank, entropy, concentration).
    """

    index: int
    epoch: int
    global_step: int
    criterion: str
    macs: int
    params: int
    layers: list[LayerRow] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)
    metrics_before: dict[str, float | None] = field(default_factory=dict)
    metrics_after: dict[str, float | None] = field(default_factory=dict)
    metrics_cut: dict[str, float | None] = field(default_factory=dict)
    details: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def when(self) -> str:
        """Return when the event happened, in words."""
        return "without training" if self.epoch < 0 else f"start of epoch {self.epoch}"


@dataclass(repr=False)
class RunRecord:
    """The record of a whole run.

    Attributes:
        model: class name of the network.
        criterion: name of the criterion.
        before: the unpruned model, measured just before the first event.
        after: the model at the end of the run.
        layers: every layer, at first and at last.
        events: the pruning events in order.
        options: the pruning options as given.
        frozen: channel group -> why it was not pruned.
        coupling: channel group -> explanation of what its units consist of.
        history: one entry an epoch: ``{"epoch": 3, "val/acc": 0.97, "macs": 123}``.
        metric: name of the metric that stands for quality in the tables, None if the run measured none.
        warnings: what the reader should know before trusting the numbers.
        versions: version of python, torch, lightning and infoprune.
        seed: the seed of the run, None if it was not seeded.
        device: what it ran on.
        command: how the run was started.
        config: the resolved configuration as YAML, empty if the run had none.
        network: path of the network inside the LightningModule, empty if it is all of it.
        inputs: shape or shapes of the example inputs, as the option ``example_inputs`` takes them; None if unknown.
        files: what lies in the run folder, label -> path relative to it.
        created: ISO 8601 time at which the record was made.
        version: version of infoprune that wrote the record.
        format: number of the record's layout.
    """

    model: str
    criterion: str
    before: Totals
    after: Totals
    layers: list[LayerRow] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    coupling: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, float | None]] = field(default_factory=list)
    metric: str | None = None
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    device: str = ""
    command: str = ""
    config: str = ""
    network: str = ""
    inputs: Any = None
    files: dict[str, str] = field(default_factory=dict)
    created: str = ""
    version: str = __version__
    format: int = FORMAT

    def __repr__(self) -> str:
        macs = f"{self.before.macs:,} -> {self.after.macs:,} MACs"
        return f"RunRecord({self.model}, {self.criterion}, {len(self.events)} events, {macs})"

    def _repr_html_(self) -> str:
        from infoprune.report.text import summary, total_rows
        from infoprune.structure.notebook import html_table

        return html_table(" ".join(summary(self)), ["", "before", "after", "change"], total_rows(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the record as nested dicts and lists of primitives."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> RunRecord:
        """Check and rebuild a record.

        Args:
            data: what `to_dict` returned, perhaps after a trip through JSON.

        Raises:
            CheckpointError: a field is missing, unknown or of the wrong type, or the record has another layout.
        """
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise CheckpointError(
                f"this record has format {data.get('format')!r} (written by infoprune {data.get('version', '?')}), but "
                f"infoprune {__version__} reads format {FORMAT}: read it with the version that wrote it"
            )
        record = _read(cls, data, "record")
        assert isinstance(record, cls)
        return record

    def to_json(self) -> str:
        """Return the record as JSON text.

        >>> record = RunRecord("Net", "l1", before=Totals(100, 10), after=Totals(50, 5))
        >>> RunRecord.from_json(record.to_json()) == record
        True
        """
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Read what `to_json` wrote; raises CheckpointError if the text is not a valid record.

        Args:
            text: the whole JSON text.
        """
        try:
            data = _printable(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"this record is not valid JSON ({error}): it may have been cut short") from error
        return cls.from_dict(data)

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, completely or not at all; raises OSError if it cannot be written.

        Args:
            path: the file; an old one is replaced.
        """
        write_text_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> RunRecord:
        """Read a record file; raises a CheckpointError that names the file if it cannot be read.

        Args:
            path: the file.
        """
        if not Path(path).is_file():
            raise CheckpointError(f"cannot read {path}: no such record; name the folder of a run that has ended")
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, CheckpointError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error


def finite(value: float) -> float | None:
    """Return the value as a float, None where it is NaN or infinite (JSON has neither).

    >>> finite(0.5), finite(float("nan"))
    (0.5, None)
    """
    return float(value) if math.isfinite(value) else None


def _printable(value: Any) -> Any:
    """Escape control characters, by which a record could manipulate the reader's terminal."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in value)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return value


def _read(kind: Any, value: Any, where: str) -> Any:
    """Return ``value`` as an object of type ``kind``, or raise a CheckpointError that says where it does not fit."""
    origin = get_origin(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, value, where)
    if origin in (Union, types.UnionType):
        # Records use unions with None only.
        if value is None and type(None) in get_args(kind):
            return None
        return _read(next(k for k in get_args(kind) if k is not type(None)), value, where)
    if origin is list and isinstance(value, list):
        return [_read(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {
            _read(str, key, where): _read(get_args(kind)[1], item, f"{where}[{key!r}]") for key, item in value.items()
        }
    # JSON writes 1.0 as 1, and True is an int in Python.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is not bool and isinstance(value, bool)):
        return value
    expected = (origin or kind).__name__
    raise CheckpointError(f"{where} is {value!r:.60}, expected {expected}: the file is damaged or no record of a run")


def _read_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is {value!r:.60}, expected an object with the fields of {kind.__name__}")
    hints = get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise CheckpointError(f"{where} has an unknown field {name!r}{nearest(str(name), hints)}")
    for spec in dataclasses.fields(kind):
        optional = spec.default is not dataclasses.MISSING or spec.default_factory is not dataclasses.MISSING
        if spec.name not in value and not optional:
            raise CheckpointError(f"{where} lacks the field {spec.name!r}: the file is damaged or no record of a run")
    return kind(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()})

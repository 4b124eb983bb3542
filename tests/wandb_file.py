"""Reads what the W&B client wrote in offline mode: the records of a ``.wandb`` file."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BLOCK = 32768


@dataclass
class OfflineRun:
    """The parts of an offline run that the tests look at."""

    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)

    def column(self, key: str) -> list[Any]:
        return [row[key] for row in self.history if key in row]


def read_offline_run(folder: Path) -> OfflineRun:
    """Read the one offline run below ``folder``, when it is complete.

    The client's service writes the file on its own time: neither ``wandb.finish`` nor the end of the process waits.
    """
    for _ in range(600):
        files = list(folder.rglob("*.wandb"))
        records = _records(files[0].read_bytes()) if files else []
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"no complete run after a minute, {len(records)} records in {files}")
    assert len(files) == 1, files
    run = OfflineRun()
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run.history.append(_nested(record.history.item))
        elif kind == "config":
            run.config.update(_nested(record.config.update))
        elif kind == "run":
            run.config.update(_nested(record.run.config.update))
        elif kind == "summary":
            run.summary.update(_nested(record.summary.update))
        elif kind == "metric":
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            run.artifacts.append(record.request.log_artifact.artifact)
    return run


def _nested(items: Iterable[Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for item in items:
        *path, last = item.nested_key or [item.key]
        inner = out
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = json.loads(item.value_json)
    return out


def _records(data: bytes) -> list[Any]:
    """The records up to the first that is not whole: the service may be in the middle of writing it."""
    from wandb.proto import wandb_internal_pb2

    if data[:4] != b":W&B":
        pytest.skip("this version of wandb writes another file format")
    position, buffer, out = 7, b"", []
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        checksum, size, kind = struct.unpack("<IHB", data[position : position + 7])
        position += 7
        if kind == 0 and size == 0:
            position += left - 7
            continue
        chunk = data[position : position + size]
        if zlib.crc32(bytes([kind]) + chunk) != checksum:
            break
        buffer += chunk
        position += size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(buffer)
            out.append(record)
            buffer = b""
    return out

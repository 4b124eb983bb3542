"""Running a command of ``infoprune`` within the test's process, as the shell would."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from infoprune.cli import main
from infoprune.models import CifarResNet

NET = ["--model", "CifarResNet", "--model.depth", "8"]
SHAPE = ["--input-shape", "1,3,16,16"]


@dataclass
class Ran:
    """What a command left: exit code, standard output, the lines of standard error."""

    code: int
    out: str
    err: list[str]

    @property
    def json(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Shell:
    """Runs commands in one folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Ran:
        self._capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
        said = self._capsys.readouterr()
        return Ran(code, said.out, said.err.splitlines())

    def refuses(self, *words: object) -> str:
        """The one line on stderr of a command that is refused with exit code 2, with nothing on stdout."""
        ran = self(*words)
        assert ran.code == 2
        assert ran.out == ""
        assert len(ran.err) == 1, ran.err
        return ran.err[0]


def weights(path: Path, depth: int = 8) -> Path:
    """Write the state dict of a CIFAR ResNet whose weights are not those of a fresh one."""
    torch.manual_seed(5)
    torch.save(CifarResNet(depth=depth).state_dict(), path)
    return path

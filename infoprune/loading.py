"""Let every model load the weights of a pruned one: `install` runs as soon as infoprune and torch are imported."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from typing import Any

from infoprune.marker import unmarked

RECORD = "infoprune"
HINT = (
    "If these weights are of a model that infoprune pruned: load a checkpoint with infoprune.load_from_checkpoint, or "
    "call infoprune.attach(model) and load its whole state dict (a copy with other names has lost the plan)."
)


def install_when_torch_is_there() -> None:
    """Call `install` now, or once torch is imported, so that importing infoprune does not import torch."""
    if "torch.nn" in sys.modules:
        install()
    elif not any(isinstance(finder, _AfterTorch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTorch())


class _AfterTorch:
    """A finder of modules that finds ``torch.nn`` as usual and calls `install` behind its import."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torch.nn":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_install(module: Any) -> None:
                run(module)
                install()

            spec.loader.exec_module = run_and_install  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Let ``load_state_dict`` of every module take the shape of the weights, where they carry a plan; once.

    Weights without a plan are loaded as ever. Where they do not fit and are narrower than the model, the error says
    what to do if infoprune pruned them.
    """
    from torch.nn import Module

    if hasattr(Module.load_state_dict, "_infoprune"):
        return
    load = Module.load_state_dict

    @functools.wraps(load)
    def load_state_dict(self: Any, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        state_dict, plan = unmarked(state_dict)
        if plan is not None or RECORD in getattr(state_dict, "_metadata", {}).get("", {}):
            from infoprune.checkpoint import attach, with_plan

            attach(self)
            state_dict = with_plan(self, state_dict, plan)
        try:
            return load(self, state_dict, *args, **options)
        except RuntimeError as error:
            if "size mismatch" in str(error) and _is_narrower(self, state_dict):
                raise RuntimeError(f"{error}\n\t{HINT}") from None
            raise

    load_state_dict._infoprune = True  # type: ignore[attr-defined]
    Module.load_state_dict = load_state_dict  # type: ignore[method-assign]


def _is_narrower(module: Any, state: Mapping[str, Any]) -> bool:
    """Return whether no tensor that comes in is larger than the model's in any dimension."""
    own = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in module.state_dict().items()}
    pairs = [(tuple(getattr(tensor, "shape", ())), own[name]) for name, tensor in state.items() if name in own]
    return all(len(new) == len(old) and all(map(int.__le__, new, old)) for new, old in pairs)

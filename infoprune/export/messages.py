"""Say why a model cannot be exported: the line of its code, or the operator and its layer."""

from __future__ import annotations

import io
import linecache
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the exporters' warnings, logs and prints; the error repeats what matters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def why_not(model: nn.Module, error: Exception) -> str:
    """Say why `torch.export` refused a model, with the line of the model's code.

    Args:
        model: the model.
        error: what `torch.export` raised.
    """
    text = " ".join(str(error).split())
    fixed = re.search(r"(?:specialized it|inferred) to be a constant \((\d+)\)", text)
    if fixed:
        return (
            f"{type(model).__name__} fixes its batch size at {fixed[1]} in its forward: export with a fixed batch "
            "(--static_batch), or write the forward without it"
        )
    return f"torch.export cannot follow {type(model).__name__}{_place(model, error)}: {first_sentence(text)}"


def _place(model: nn.Module, error: Exception) -> str:
    """Return the line of a forward, and the layer that it belongs to, where an error was raised."""
    home, names = str(Path(torch.__file__).parent), {module: name for name, module in model.named_modules()}
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        code = frame.f_code
        if code.co_name == "forward" and not code.co_filename.startswith(home):
            layer = names.get(frame.f_locals.get(code.co_varnames[0]))
            text = linecache.getline(code.co_filename, line).strip()
            return f" at {Path(code.co_filename).name}:{line} ({text})" + (f" in {layer}" if layer else "")
    return ""


def operator_named_in(text: str, program: ExportedProgram) -> str:
    """Return the operator that an exporter's message is about, and the layer that calls it; "" if it names none.

    Args:
        text: what the exporter says.
        program: what it was to export.
    """
    found = re.search(r"op='([\w.]+)', overload='(\w+)'|_ops\.(\w+\.\w+)\.(\w+)", text)
    if not found:
        return ""
    name, overload = found[1] or found[3], found[2] or found[4]
    nodes = _nodes(program, f"{name}.{overload}")
    where = next((f" (in {layer})" for node in nodes if (layer := _layer_of(node))), "")
    return f"operator for {name}{where}"


def _nodes(program: ExportedProgram, operator: str) -> Iterator[Any]:
    """Return the nodes of a program, before and after decomposition, that call an operator."""
    for graph in (program, program.run_decompositions()):
        yield from (node for node in graph.graph.nodes if str(node.target) == operator)


def _layer_of(node: Any) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).removeprefix("L['self'].") if stack else ""


def first_sentence(text: str) -> str:
    """Return the first sentence or line of a message, at most 300 characters.

    Args:
        text: the message.
    """
    return re.split(r"(?<=[.!])\s|\n", text.strip(), maxsplit=1)[0][:300]

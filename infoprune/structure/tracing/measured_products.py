"""Count the products of a model in which values decide how often layers run.

A two-stage detector runs its head for each box that the first stage finds. A trace on shapes computes such values where
that is cheap; where it is not, random numbers stand for them, and the layers behind run for another number of boxes. A
run on the example inputs tells the right one.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from infoprune.structure.tracing.passes import Passes
from infoprune.structure.tracing.records import Contraction
from infoprune.structure.tracing.tracer import Tracer

if TYPE_CHECKING:
    from infoprune.structure.tracing.session import TraceSession


def run_products(session: TraceSession) -> list[Contraction]:
    """Run a traced model once in eval mode on its example inputs, and return the products that it computes.

    Args:
        session: the traced model.

    Returns:
        The products, with labels of their own; those of the trace, with a warning, where the model cannot run any more
        or was cut since.
    """
    run = type(session)(session.model, session.inputs)
    sizes, before = ({name: [*map(len, axes)] for name, axes in each.labels.items()} for each in (run, session))
    if sizes != before:
        why = "it was cut since it was traced; ask for the cost before the cut"
    else:
        run.passes = Passes(on_shapes=False)
        tracer = Tracer(run.space, {id(module): name for name, module in run.modules.items()})
        try:
            run.run_pass(tracer, train=False, stand_ins={})
            return tracer.contractions
        except Exception as error:  # a trace needs neither values nor the device and dtype of the inputs; a run does
            why = f"it does not run on the example inputs ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    warnings.warn(
        f"the cost of {type(session.model).__name__} depends on values, and may be counted too low: {why}", stacklevel=2
    )
    return session.passes.counted


def with_labels(products: Sequence[Contraction], traced: Sequence[Contraction]) -> list[Contraction]:
    """Give the products of a run the labels of traced ones: those of the same call, else of the layer's last call.

    Args:
        products: products of the right sizes.
        traced: products with the right labels.

    Returns:
        As many products as ran. The cost of a layer that was not traced depends on no label.
    """
    calls: defaultdict[tuple[str, str, str], list[Contraction]] = defaultdict(list)
    for product in traced:
        if all(map(len, product.sides)):
            calls[_layer(product)].append(product)
    seen: defaultdict[tuple[str, str, str], int] = defaultdict(int)
    found = []
    for product in products:
        layer = _layer(product)
        known = calls[layer] or [product._replace(sides=())]
        like = known[min(seen[layer], len(known) - 1)]
        seen[layer] += 1
        size = product.times * math.prod(map(len, product.sides))
        found.append(like._replace(times=size / math.prod(map(len, like.sides))))
    return found


def _layer(product: Contraction) -> tuple[str, str, str]:
    return product.kernel, product.module, product.kind

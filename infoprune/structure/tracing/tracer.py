"""Run a model once with labels attached to its tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import RLock, get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from infoprune.errors import TraceError
from infoprune.inputs import Inputs, call_model
from infoprune.random_state import NumberedDraws, repeatable
from infoprune.structure.labels import LabelSpace
from infoprune.structure.labels.tensor_labels import (
    TensorLabels,
    clear_labels,
    labels_of,
    new_pass,
    note_written,
    overlap,
    set_labels,
)
from infoprune.structure.tracing import meta_kernels, overwritten
from infoprune.structure.tracing.execution import Operator, execute
from infoprune.structure.tracing.function_calls import FunctionCalls
from infoprune.structure.tracing.lists import call_one_by_one, is_on_lists
from infoprune.structure.tracing.meta_kernels import kernel_of
from infoprune.structure.tracing.options import options_in
from infoprune.structure.tracing.other_classes import other_classes_seen
from infoprune.structure.tracing.outputs import Returned, output_tensors
from infoprune.structure.tracing.records import Contraction, OpRecord, Output, Read
from infoprune.structure.tracing.relabel import Recording, Step
from infoprune.structure.tracing.rule_context import RuleContext
from infoprune.structure.tracing.rules import Rule, find_rule, tensors_in, unknown
from infoprune.structure.tracing.rules.signs import has_no_negatives
from infoprune.structure.tracing.scalars import scalars_in
from infoprune.structure.tracing.tables import with_numbers
from infoprune.structure.tracing.values import Call, Values


class Tracer(TorchDispatchMode):
    """Observe every ATen operator of a forward pass, whatever the Python around it looks like.

    On meta tensors the operators run on shapes alone; a real tensor that meets one (a constant made by the model, an
    integer buffer) is taken for its shape.

    Args:
        space: where labels come from.
        names: names of the model's modules, by their identity.
        first: the number of the first operator; passes number theirs on.
        seed: of the random numbers that the model's code draws.

    Attributes:
        drew: whether it drew any.
        found: what the pass found in the attributes that it changed, by module and name.
    """

    def __init__(self, space: LabelSpace, names: Mapping[int, str], first: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        self.first = first
        self.seed = seed
        self.records: list[OpRecord] = []
        self.contractions: list[Contraction] = []
        self.used: set[str] = set()
        self.recording: Recording | None = None
        self.results: list[weakref.ref[Tensor]] = []  # of a pass that is not recorded
        self.values: Values | None = None
        self.draws = NumberedDraws(seed)
        self.drew = False
        self.found: dict[tuple[str, str], Any] = {}
        self.functions = FunctionCalls()
        self.tables_on: torch.device | None = None
        self.tables: list[Tensor] = []  # of a first pass: without labels, and still held after it
        self._names = names
        self._modules: list[str] = [""]
        self._operators: dict[int, Operator] = {}

    @property
    def module(self) -> str:
        """Path of the innermost module that is running."""
        return self._modules[-1]

    @property
    def operators(self) -> list[tuple[str, str]]:
        """Return what ran: the operators' names and their modules."""
        return [(record.name, record.module) for record in self.records]

    def operators_of(self, module: str) -> list[int]:
        """Return the numbers of the operators that a module itself runs, in their order.

        Args:
            module: path of the module.
        """
        return [number for number, record in enumerate(self.records, self.first) if record.module == module]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled while a model is traced, and keeping dynamo out costs something every time

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _NEW and args[0] == [0] and kwargs and kwargs.get("dtype") is torch.uint8:
            return func(*args, **kwargs)  # an empty buffer for cuDNN, which each call of batch norm makes
        operator = self._operators.get(id(func))
        if operator is None:
            name = str(func.overloadpacket)
            if is_on_lists(name):
                with self:
                    return call_one_by_one(func, args, kwargs or {})
            rule = find_rule(func)
            if rule is unknown and func._can_decompose():  # in inference mode those made of others stay whole
                with self:
                    return func.decompose(*args, **kwargs or {})
            draws = torch.Tag.nondeterministic_seeded in func.tags
            operator = self._operators[id(func)] = Operator(func, rule, name, kernel_of(func), draws)
        if self.tables_on is not None:
            kwargs = with_numbers(kwargs or {}, tensors_in(args), self.tables_on)
        if operator.draws:
            self.draws.seed((kwargs or {}).get("generator"))
        with torch._C.DisableTorchFunction():  # which constructors in C++ leave on; what rules compute is not observed
            return self.observe(operator, args, kwargs or {})

    def observe(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator, label its results and record it.

        Args:
            operator: the operator with its rule.
            args: positional arguments.
            kwargs: keyword arguments.

        Returns:
            What the operator returns.
        """
        tensors = tensors_in(args, kwargs)
        result, read = self._executed(operator, args, kwargs, tensors)
        outs = [result] if isinstance(result, Tensor) else tensors_in((result,))
        if tensors or holds_anything(outs):
            scalars = scalars_in(operator.name, args, kwargs, tensors)
            record = OpRecord(operator.name, self.module, scalars, options_in(operator.name, args, kwargs))
            record.sizes_follow = self.functions.sizes_follow
            record.read = Read(None if outs and outs[0].is_meta else result) if read else None
            self.label(Step(record, operator, args, kwargs, tensors, outs))
        return result

    def _executed(
        self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]
    ) -> tuple[Any, bool]:
        """Run an operator, and say whether that took numbers, which a pass on shapes has to compute first."""
        if self.values is None:
            return execute(operator, args, kwargs, tensors), False
        call = Call(operator.func, operator.name, args, kwargs, tensors)
        try:
            result = execute(operator, args, kwargs, tensors)
        except (NotImplementedError, RuntimeError) as on_shapes:
            if not any(tensor.is_meta for tensor in tensors):
                raise
            try:
                return self.values.read(call), True
            except Exception as on_numbers:
                raise on_shapes from on_numbers
        call.outs = [result] if isinstance(result, Tensor) else tensors_in((result,))
        self.values.note(call)
        return result, False

    def label(self, step: Step) -> None:
        """Give an operator's results their labels, and record the call.

        Args:
            step: the operator's call: its record, operator, arguments and results.
        """
        record, operator, args, kwargs, tensors, outs = step
        op = RuleContext(self.space, record, self.first + len(self.records), self.contractions)
        # Read before the rule runs: an in-place operator writes to the labels of its operand.
        given = [labels_of(tensor) for tensor in tensors]
        origins = [labels.origin for labels in given]
        statistics = [s for labels in given if labels.statistics for s in labels.statistics]
        nonzero = {id(axis): axis for labels in given if labels.nonzero for axis in labels.nonzero}
        no_negatives = has_no_negatives(record.name, args, kwargs, [labels.nonnegative for labels in given])
        apply(operator.rule, op, args, kwargs, outs)
        if no_negatives and outs:
            labels_of(outs[0]).note_nonnegative()
        # A statistic that the rule does not carry on has become an ordinary number: its channels have to stay.
        for statistic in () if op.carried_statistics else statistics:
            self.space.freeze(statistic.axis[statistic.axis >= 0], statistic.reason, statistic.op)
        # What is computed from parameters alone is a kernel in another form; the largest parameter gives its name.
        main = self._main_origin(origins, tensors) if any(origins) else None
        if main is not None and not record.name.startswith("aten.new_"):
            for out in outs:
                labels_of(out).origin = main
        if nonzero and not op.zeros_settled:
            lost = tuple(nonzero.values())
            lost += tuple(result for met, result in op.met if any(overlap(axis, lost) for axis in met))
            for out in outs:
                labels_of(out).nonzero += lost
        if record.name.endswith("_") or "out" in kwargs:
            for out in outs:
                note_written(out)
        record.outputs = [Output(tuple(out.shape), out.dtype, labels_of(out).axes) for out in outs]
        self.records.append(record)
        # A recording keeps the steps for a later pass; else weak references suffice to know what is alive.
        if self.recording is not None:
            self.recording.steps.append(step)
        else:
            self.results += map(weakref.ref, outs)

    def _main_origin(self, origins: Sequence[str | None], tensors: Sequence[Tensor]) -> str | None:
        """Return the largest of the model's tensors that operands are made of; None if others than these take part."""
        self.used.update(origin for origin in origins if origin is not None)
        sources = [(origin, tensor) for origin, tensor in zip(origins, tensors, strict=True) if tensor.dim()]
        if not sources or any(origin is None for origin, _ in sources):
            return None
        return max(sources, key=lambda source: (source[0] in self.space.parameters, source[1].numel()))[0]

    @contextmanager
    def watching_modules(self) -> Iterator[None]:
        """Keep `module` up to date while modules run."""
        own = get_ident()  # other threads may run models of their own meanwhile

        def enter(module: nn.Module, _: Any) -> None:
            if get_ident() == own:
                self._modules.append(self._names.get(id(module), self.module))

        def leave(*_: Any) -> None:
            if get_ident() == own:
                self._modules.pop()

        first = register_module_forward_pre_hook(enter)
        last = register_module_forward_hook(leave)
        try:
            yield
            del self._modules[1:]  # where forward raised, the innermost module stays on top for the message
        finally:
            first.remove()
            last.remove()


_NEW = torch.ops.aten.empty.memory_format


def apply(rule: Rule, op: RuleContext, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    """Apply a rule; an exception in a rule is reported as the rule's fault, not the model's.

    Args:
        rule: the operator's rule.
        op: its context.
        args: positional arguments of the operator.
        kwargs: keyword arguments.
        outs: the results to label.

    Raises:
        TraceError: names the operator and the error of the rule.
    """
    try:
        rule(op, args, kwargs, outs)
    except Exception as error:
        raise TraceError(f"the rule of {op.record} failed: {type(error).__name__}: {error}") from error


def holds_anything(made: Sequence[Tensor]) -> bool:
    """Return whether new tensors are worth a record: each call of batch norm makes one without any element.

    Args:
        made: the results of an operator.
    """
    return any(any(tensor.shape) or not tensor.dim() for tensor in made)


_ONE_PASS = RLock()
"""Passes of several threads take turns: each holds PyTorch's switches and random numbers for a while."""


def run_labelled(
    tracer: Tracer, model: nn.Module, inputs: Inputs, labelled_tensors: Sequence[tuple[Tensor, TensorLabels]]
) -> Returned:
    """Run one forward pass under ``tracer``, without gradients, with labels attached to the model's tensors.

    Args:
        tracer: which observes every operator.
        model: the model.
        inputs: its example inputs.
        labelled_tensors: parameters and buffers with their labels.

    Returns:
        What the model returned, and what left it another way.
    """
    with ExitStack() as stack:
        stack.enter_context(_ONE_PASS)
        stack.enter_context(new_pass())
        stack.enter_context(torch.no_grad())
        drew_elsewhere = stack.enter_context(repeatable(tracer.seed))
        stack.callback(tracer.draws.restore)
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        fast_path = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(_clear_all_labels, [tensor for tensor, _ in labelled_tensors])
        stack.callback(meta_kernels.forget)
        stack.callback(overwritten.forget)
        for tensor, tensor_labels in labelled_tensors:
            set_labels(tensor, tensor_labels)
        stack.enter_context(tracer.watching_modules())
        stack.enter_context(tracer.functions)
        tracer.functions.observe = tracer.observe
        stack.callback(setattr, tracer.functions, "observe", None)  # which would be a cycle of references
        stack.enter_context(other_classes_seen(tracer.observe))
        stack.enter_context(tracer)
        value = call_model(model, inputs)
        tensors = output_tensors(value)  # what an iterator yields is computed here
        returned = Returned(value, tensors, [labels_of(tensor) for tensor in tensors])
        tracer.drew = tracer.draws.count > 0 or drew_elsewhere()
    if tracer.recording is not None:
        tracer.recording.labelled_tensors = labelled_tensors
    return returned


def _clear_all_labels(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        clear_labels(tensor)


def inputs_on_meta(inputs: Inputs) -> Inputs:
    """Return the inputs with floating-point tensors as shapes; integers (token ids, lengths) keep their values.

    Args:
        inputs: example inputs, nested in any way.
    """

    def carry(tensor: Tensor) -> Tensor:
        return tensor.to("meta") if tensor.is_floating_point() or tensor.is_complex() else tensor

    return tree_map_only(Tensor, carry, inputs)

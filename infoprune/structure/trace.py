"""`trace`: which channels of a model live and die together, found in one pass on shapes."""

from __future__ import annotations

import fnmatch
import gc
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten

from infoprune.errors import ConfigurationError, PlanError, TraceError, nearest
from infoprune.inputs import ByMode, Inputs
from infoprune.structure.groups import Passes, Structure
from infoprune.structure.labels import LabelSpace
from infoprune.structure.labels.tensor_labels import TensorLabels, labels_of
from infoprune.structure.module_state import Attributes
from infoprune.structure.plan import PruningPlan, check_belongs
from infoprune.structure.tensors import OwnedTensor, on_meta, owned_tensors, swapped
from infoprune.structure.tracing.examples import count_examples
from infoprune.structure.tracing.outputs import Returned, tensors_held
from infoprune.structure.tracing.relabel import Recording
from infoprune.structure.tracing.rule_context import MEETS_OTHERS, OpRecord
from infoprune.structure.tracing.tracer import (
    Tracer,
    collector_paused,
    inputs_on_meta,
    run_labelled,
)
from infoprune.structure.tracing.values import Constants, UnknownConstant, Values
from infoprune.structure.unreached import settle_unreached
from infoprune.structure.validation import size_aliases
from infoprune.structure.validation.conflict import Conflict
from infoprune.structure.validation.dry_run import bisect, dry_run
from infoprune.structure.validation.probe_plans import probe_plans
from infoprune.structure.validation.size_attributes import SizeAttributeFinder

MAX_DRY_RUNS = 50

FEWEST_AT_ENDS = 8
"""Layers right at an input or output that have as many channels inside as that has, fewer than this, keep them."""

REACHES_OUTPUT = "reaches the model's output"

_EVAL_ALWAYS = (_NormBase, nn.modules.dropout._DropoutNd)
"""Layers that are never traced in train mode: they would change statistics or draw random numbers."""


def trace(
    model: nn.Module, example_inputs: Inputs, frozen: Sequence[str] = (), follow: Mapping[str, str | None] | None = None
) -> Structure:
    """Find the channel groups of a model and what each costs.

    The model runs once in eval mode on shapes alone (on real tensors where its control flow needs values) while labels
    ride along every tensor. Then a trial cut is rehearsed, again on shapes, and whatever the model's code does not
    follow is frozen. Parameters that eval mode does not reach (auxiliary heads) are traced in train mode.
    Nothing of the model is changed: weights, buffers, train/eval flags, what its code keeps for the next call, random
    state.

    Args:
        model: any module; its device and dtype do not matter.
        example_inputs: a tensor (or a list), a tuple of positional or a dict of keyword arguments of ``forward``.
        frozen: patterns (as in shells) of module or parameter names whose filters must all stay, e.g. ``"head"``,
            ``"layer1.*"``. A few channels right at an input or output, as many as that has (colours), stay anyway;
            ``"!layer1"`` lets those of a layer go.
        follow: path of each copy within the model -> path of its original; a copy loses what its original loses;
            None instead of an original: the copy stays as it is.

    Returns:
        The structure: groups, reasons, cost model.

    Raises:
        TraceError: the model's forward fails on the example inputs.
        ConfigurationError: a pattern of ``frozen`` matches nothing.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> structure = trace(net, torch.zeros(1, 3, 8, 8))
        >>> [(group.name, group.size) for group in structure.prunable]
        [('0', 8)]
    """
    return rehearsed(*labelled(model, example_inputs, frozen, follow))


def labelled(
    model: nn.Module, example_inputs: Inputs, frozen: Sequence[str] = (), follow: Mapping[str, str | None] | None = None
) -> tuple[TraceSession, Structure]:
    """The first half of `trace`: what the operators say, before any cut has been rehearsed."""
    owned = owned_tensors(model)
    _check_materialised(owned)
    if not all(len(tensor) for tensor in _tensors_of(example_inputs)[:1] if tensor.dim()):
        raise TraceError(f"the example inputs {_in_words(example_inputs)} hold no example: give at least one")
    session = TraceSession(model, example_inputs, owned)
    session.pair_copies(follow or {})
    session.freeze_patterns(frozen)
    session.freeze_modules()
    with collector_paused():
        session.run()
        session.numbers.find_frozen_heads()
        structure = session.structure()
    if session.unreached and structure.prunable:
        warnings.warn(
            f"{', '.join(session.unreached)}: not reached by the example inputs, so left as wide as before; where it "
            "reads a layer that is cut it will fail. Give example inputs that reach it, or freeze those layers",
            stacklevel=3,
        )
    return session, structure


def rehearsed(session: TraceSession, structure: Structure) -> Structure:
    """The second half of `trace`: what remains once all that the model's code does not follow is frozen."""
    with collector_paused(session.on_shapes):
        return _rehearsed(session, structure)


def _rehearsed(session: TraceSession, structure: Structure) -> Structure:
    for _ in range(MAX_DRY_RUNS):
        # The first trial cut that something stands in the way of; the second is not run before the first is clean.
        tried = ((trial, dry_run(session, structure, trial)) for trial in probe_plans(structure))
        trial, conflicts = next(((trial, conflicts) for trial, conflicts in tried if conflicts), (None, []))
        if trial is None:
            return structure
        structure = resolve_conflicts(session, structure, trial, conflicts)
    for group in structure.prunable:
        for slot in group.slots:
            session.space.freeze(session.labels[slot.tensor][slot.dim][slot.index], "no cut of it could be rehearsed")
    return session.structure()


def resolve_conflicts(
    session: TraceSession, structure: Structure, plan: PruningPlan, conflicts: list[Conflict]
) -> Structure:
    """Return what remains where the code does not follow a plan.

    A width that it reads elsewhere is tied to that, a number that explains it is rewritten, or the part stays.
    """
    if not size_aliases.tie(session, structure, plan, conflicts) and not session.numbers.find(structure, conflicts):
        settled: set[int] = set()
        for conflict in bisect(session, structure, plan, conflicts):
            groups = set(structure.groups_cut(conflict.labels).tolist())
            if not groups or groups - settled:
                session.space.freeze(structure.whole_groups(conflict.labels), conflict.reason, conflict.op)
            settled |= groups
    return session.structure()


def check_plan(model: nn.Module, example_inputs: Inputs, structure: Structure, plan: PruningPlan) -> None:
    """Rehearse a plan on shapes, without touching the model.

    `trace` rehearses a trial cut, which nearly always speaks for all cuts; this tells for the plan at hand.

    Raises:
        PlanError: the model's code does not follow the plan; names the operator.
    """
    conflicts = dry_run(TraceSession.resume(model, example_inputs, structure), structure, plan)
    if conflicts:
        first = conflicts[0]
        where = f" ({structure.records[first.op]})" if first.op >= 0 else ""
        raise PlanError(f"the model cannot follow this plan: a channel {first.reason}{where}; freeze that layer")


def _check_materialised(owned: dict[str, OwnedTensor]) -> None:
    for name, entry in owned.items():
        if isinstance(entry.tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise TraceError(f"{name} is a lazy parameter without a shape yet; run the model once before tracing it")


def _tensors_of(inputs: Inputs) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor)]


def _alive(results: Iterable[weakref.ref[Tensor]]) -> list[Tensor]:
    found = (result() for result in results)
    return list({id(tensor): tensor for tensor in found if tensor is not None}.values())


def _in_words(inputs: Inputs) -> str:
    shapes = [str(tuple(tensor.shape)) for tensor in _tensors_of(inputs)]
    return f"of shape {', '.join(shapes)}" if shapes else f"of type {type(inputs).__name__}"


class TraceSession:
    """A model on its example inputs, with the labels of its tensors and the passes that were recorded."""

    def __init__(self, model: nn.Module, inputs: Inputs, owned: dict[str, OwnedTensor]) -> None:
        self.model = model
        self.inputs = inputs
        self.owned = owned
        self.on_shapes = True
        self.space = LabelSpace()
        self.space.parameters = frozenset(name for name, entry in owned.items() if entry.is_parameter)
        self.modules = dict(model.named_modules())
        self._attributes = Attributes(self.modules.values())
        self.module_names = {id(module): name for name, module in self.modules.items()}
        self.labels = {
            name: [self.space.add_slot(name, dim, size) for dim, size in enumerate(entry.tensor.shape)]
            for name, entry in owned.items()
        }
        self.unreached: list[str] = []  # modules that no pass ran, and that have no like that did
        self._narrow_too: set[str] = set()  # tensors whose few channels right at an input or output may go
        self.passes: list[tuple[bool, Tracer]] = []
        self.whole: set[str] = set()  # tensors of copies that stay as they are
        self.copies: list[tuple[str, str]] = []  # tensors that lose the same: of a copy, of its original
        self.caches: list[str] = []  # attributes in which the model's code keeps what it has computed
        self._zero_pass: Tracer | None = None
        self._running: Tracer | None = None  # the last tracer that has been set going
        self._recording: Recording | None = None
        self._last: tuple[tuple[list[Tracer], int, int], Structure] | None = None
        self._notes_constants = False  # written-out numbers, which control flow reads
        self._numbers_made_up = False  # for control flow to read
        self.numbers = SizeAttributeFinder(self)

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trace in eval mode, and in train mode too if that reaches parameters which eval does not."""
        self._unite_copies()
        try:
            self.passes = [(False, self._pass_on_shapes())]
            if self._numbers_made_up and self._unused():
                raise RuntimeError("with numbers that were made up, the control flow leaves out parts of the model")
        except TraceError:
            raise
        except Exception as on_shapes_error:
            self.on_shapes = False
            self._forget_operators()
            self._unite_copies()
            self.passes = []
            try:
                self.passes = [(False, self._pass(train=False))]
            except Exception as error:
                raise self._user_error(error) from on_shapes_error
        if not self.on_shapes:
            self._zero_pass = self._pass(train=False, stand_ins=self.background())
        unused = self._unused()
        by_mode = isinstance(self.inputs, ByMode)
        if by_mode and not self.on_shapes:
            raise TraceError("what train mode runs cannot be traced, because the model reads values of tensors")
        if (unused or by_mode) and self.on_shapes:
            self.space.resolve_balances()
            mark = (len(self.space.unions), len(self.space.freezes))
            try:
                self.passes.append((True, self._pass(train=True)))
            except Exception as error:  # what train mode would need is unknown, so nothing that it shares may be cut
                if by_mode:
                    raise self._user_error(error) from error
                self.space.truncate(*mark)
                self._freeze_near(unused)
        paired = {name for pair in self.copies for name in pair}
        if by_mode:  # parts that only train mode runs (a discriminator, a teacher) keep their filters
            for name in (name for name in unused if name not in paired):
                self.space.freeze(self.labels[name][0], "is run by the training step only")
        for name in self.whole:
            for labels in self.labels[name]:
                self.space.freeze(labels, "is part of a copy that stays as it is")
        unused = [name for name in self._unused() if name not in paired and name not in self.whole]
        tied, self.unreached = settle_unreached(self, unused) if unused else (set(), [])
        for name in unused:
            for labels in self.labels[name] if name not in tied else ():
                self.space.freeze(labels, "is never used in the forward pass")
        self._freeze_colours()

    def _freeze_colours(self) -> None:
        """Freeze the few channels of layers that map an input, or to an output, one to one.

        Such layers work on colours (the mean shifts of super-resolution), and without one of these a model is of no
        use, however exact the cut.
        """
        component = self.space.components()
        ends: dict[str, set[int]] = {"input": set(), "output": set()}
        for freeze in self.space.freezes:
            end = {MEETS_OTHERS: "input", REACHES_OUTPUT: "output"}.get(freeze.reason or "")
            if end:
                ends[end].update(component[freeze.labels].tolist())
        kernels = {c.kernel for _, tracer in self.passes for c in tracer.contractions} - self._narrow_too
        for name in sorted(kernel for kernel in kernels if len(self.labels.get(kernel, ())) > 2):  # with space
            for outer, inner in (self.labels[name][:2], self.labels[name][1::-1]):
                end = next((end for end, known in ends.items() if set(component[outer].tolist()) <= known), None)
                if end and 1 < len(inner) < FEWEST_AT_ENDS and len(inner) == len(outer):
                    layer = name.removesuffix(".weight")
                    self.space.freeze(
                        inner,
                        f"is one of {len(inner)} right at the model's {end}, too few to lose any; frozen=['!{layer}'] "
                        "lets them go",
                    )

    def pair_copies(self, follow: Mapping[str, str | None]) -> None:
        """Note the tensors of each copy with those of its original, and those of copies that stay as they are."""
        self.whole = {
            name
            for copy, original in follow.items()
            if original is None
            for name in self.owned
            if name.startswith(f"{copy}.")
        }
        self.copies = [
            (copy + name.removeprefix(original), name)
            for copy, original in follow.items()
            if original is not None
            for name in self.owned
            if name.startswith(f"{original}.") and copy + name.removeprefix(original) in self.owned
        ]

    def _unite_copies(self) -> None:
        for copy, original in self.copies:
            for ours, theirs in zip(self.labels[copy], self.labels[original], strict=True):
                self.space.unite(ours, theirs, -1)

    def _pass_on_shapes(self) -> Tracer:
        try:
            return self._pass(train=False)
        except UnknownConstant:
            self._forget_operators()
            self._unite_copies()
            self._notes_constants = True
            return self._pass(train=False)

    def _pass(self, train: bool, stand_ins: dict[str, Tensor] | None = None) -> Tracer:
        tracer = Tracer(self.space, self.module_names, first=sum(len(t.records) for t in self._tracers()))
        self._running = tracer
        tracer.recording = self._recording = Recording() if self.on_shapes else None
        returned = self.run_pass(tracer, train, stand_ins or {})
        if not returned.tensors and not train:
            raise TraceError(
                f"{type(self.model).__name__} returns a {type(returned.value).__name__}, in which no tensor is found: "
                "return tensors, or containers or objects that hold them"
            )
        tracer.recording = None  # the structure keeps the tracer, but none of the tensors
        tracer.results.clear()
        return tracer

    def _note_leaving(self, tracer: Tracer, returned: Returned, own: Sequence[Tensor], inputs: Inputs) -> None:
        """Freeze the channels of what leaves the model: what it returns, and what its code or a hook keeps of it."""
        leaving = [
            (tensor, labels, REACHES_OUTPUT) for tensor, labels in zip(returned.tensors, returned.labels, strict=True)
        ]
        known = {id(tensor) for tensor in (*own, *returned.tensors, *tensors_held(returned.value))}
        leaving += [(tensor, labels_of(tensor), how) for tensor, how in self._kept(tracer, known, tensors_held(inputs))]
        if tracer.recording is not None:
            tracer.recording.leaving = [(tensor, how) for tensor, _, how in leaving]
        self._freeze_leaving((labels, how) for _, labels, how in leaving)

    def _freeze_leaving(self, leaving: Iterable[tuple[TensorLabels, str]]) -> None:
        for labels, how in leaving:
            for axis in labels.axes:
                if axis is not None:
                    self.space.freeze(axis[axis >= 0], how)
            for statistic in labels.statistics:
                self.space.freeze(statistic.axis[statistic.axis >= 0], statistic.reason, statistic.op)

    def _kept(self, tracer: Tracer, known: set[int], inputs: Sequence[Tensor]) -> list[tuple[Tensor, str]]:
        """Return what is still held of a pass that has ended, besides what is known, and where.

        What is computed from the model's own tensors alone is a cache, which a cut drops.
        """

        def find() -> list[Tensor]:
            alive = tracer.recording.held_elsewhere() if tracer.recording else _alive(tracer.results)
            return [t for t in alive if id(t) not in known and labels_of(t).tells and labels_of(t).origin is None]

        if not find():
            return []
        gc.collect()  # what is only held by itself goes
        kept = find()
        if tracer.recording:
            computed = tracer.recording.computed_from(inputs)
            kept = [tensor for tensor in kept if id(tensor) in computed]
        return [(tensor, f"is kept after the forward pass, {self._place_of(tensor)}") for tensor in kept]

    def _place_of(self, tensor: Tensor) -> str:
        """Return where a tensor is kept, in words."""
        for prefix, module in self.modules.items():
            for name, value in module.__dict__.items():
                inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
                if any(held is tensor for held in (value, *inside)):
                    return f"in {f'{prefix}.{name}' if prefix else name}"
        return "by a hook or other code around the model"

    def run_pass(self, tracer: Tracer, train: bool, stand_ins: dict[str, Tensor], labels: Any = None) -> Returned:
        """One forward pass, on shapes or on real tensors, with some of the model's tensors replaced."""
        labels = labels or self.labels
        tensors: dict[str, Tensor] = {}
        for name, entry in self.owned.items():
            if name in stand_ins:
                tensors[name] = stand_ins[name]
            elif self.on_shapes and entry.tensor.is_floating_point():
                tensors[name] = on_meta(entry.tensor)
        labelled_tensors = [
            (tensors.get(name, entry.tensor), TensorLabels(entry.axes(labels[name]), zero=True, origin=name))
            for name, entry in self.owned.items()
        ]
        inputs = inputs_on_meta(self.inputs) if self.on_shapes else self.inputs
        with self._attributes.restored(), swapped(self.owned, tensors):
            for module in self.modules.values():  # past nn.Module.__setattr__: restored together with all the others
                module.__dict__["training"] = train and not isinstance(module, _EVAL_ALWAYS)
            returned = self._run(tracer, inputs, labelled_tensors)
            if tracer is self._running:  # a trace, not a rehearsal
                own = [tensor for tensor, _ in labelled_tensors]
                self._note_caches(self._attributes.filled(own))
                self._note_leaving(tracer, returned, own, inputs)
            return returned

    def _run(self, tracer: Tracer, inputs: Inputs, labelled_tensors: Sequence[tuple[Tensor, TensorLabels]]) -> Returned:
        """Run the model; a trace on shapes computes the numbers that control flow reads."""
        if tracer is not self._running or not self.on_shapes:
            return run_labelled(tracer, self.model, inputs, labelled_tensors)
        weights = zip((tensor for tensor, _ in labelled_tensors), (e.tensor for e in self.owned.values()), strict=True)
        values = Values(weights, zip(_tensors_of(inputs), _tensors_of(self.inputs), strict=True))
        tracer.values = values
        try:
            with Constants(values) if self._notes_constants else nullcontext():
                return run_labelled(tracer, self.model, inputs, labelled_tensors)
        finally:
            tracer.values = None  # holds all tensors of the pass
            self._numbers_made_up |= values.made_up

    def _note_caches(self, filled: Iterable[tuple[nn.Module, str]]) -> None:
        for module, name in filled:
            prefix = self.module_names[id(module)]
            path = f"{prefix}.{name}" if prefix else name
            if path not in self.caches:
                self.caches.append(path)

    def retrace(self) -> None:
        """Forget what the operators said and label all anew, with what has been found out since."""
        recording = self._recording if len(self.passes) == 1 and not self._unused() else None
        self._forget_operators()
        self.space.head_labels.clear()
        self.passes, self._zero_pass = [], None
        tracer = Tracer(self.space, self.module_names)
        leaving = None if recording is None else recording.replay(tracer)
        if leaving is not None:
            self._unite_copies()
            self._freeze_leaving(leaving)
            self.passes = [(False, tracer)]
            self._freeze_colours()
        else:
            self.run()

    def _forget_operators(self) -> None:
        self.space.truncate(unions=0, freezes=len(self.space.freezes))
        self.space.freezes = [freeze for freeze in self.space.freezes if freeze.op < 0]

    def _user_error(self, error: Exception) -> TraceError:
        where = self._running.module if self._running else ""
        reason = str(error).partition("\n")[0]
        return TraceError(
            f"the model's forward failed on the example inputs {_in_words(self.inputs)}"
            f"{f' in module {where!r}' if where else ''}: {type(error).__name__}: {reason}"
        )

    def _unused(self) -> list[str]:
        used = set().union(*(tracer.used for _, tracer in self.passes))
        return [n for n, e in self.owned.items() if n not in used and e.tensor.is_floating_point() and e.tensor.dim()]

    def _freeze_near(self, unused: Sequence[str]) -> None:
        """Freeze all channels: parts of the model that could not be run may read any of them."""
        reason = f"train mode uses {unused[0]}, which eval mode does not, and could not be run on the example inputs"
        for labels in self.labels.values():
            for axis in labels:
                self.space.freeze(axis, reason)

    # -- rehearsing ---------------------------------------------------------------------------------------------------

    def background(self) -> dict[str, Tensor]:
        """Return what replaces the tensors that a rehearsal does not cut.

        On real tensors all weights are zero, so that the original and the shrunk model compute the same values and
        control flow that depends on them takes the same way.
        """
        if self.on_shapes:
            return {}
        return {n: torch.zeros_like(e.tensor) for n, e in self.owned.items() if e.tensor.is_floating_point()}

    def dry_run_passes(self) -> list[tuple[bool, Tracer]]:
        """The passes that a rehearsal has to repeat."""
        if self.on_shapes:
            return self.passes
        assert self._zero_pass is not None
        return [(False, self._zero_pass)]

    # -- what must stay -----------------------------------------------------------------------------------------------

    def freeze_patterns(self, patterns: Sequence[str]) -> None:
        """Freeze the filters (the first dimension of every tensor) of the modules that match."""
        for given in [patterns] if isinstance(patterns, str) else patterns:
            if not isinstance(given, str):
                raise ConfigurationError(f"frozen holds patterns of names such as 'layer1.*', got {given!r}")
            pattern = given.removeprefix("!")
            matching = {name for name in self.modules if name and fnmatch.fnmatchcase(name, pattern)}
            hit = False
            for tensor, axes in self.labels.items():
                parents = {tensor.rsplit(".", n)[0] for n in range(1, tensor.count(".") + 1)}
                if fnmatch.fnmatchcase(tensor, pattern) or parents & matching:
                    hit = True
                    if given != pattern:
                        self._narrow_too.add(tensor)
                    elif axes:
                        self.space.freeze(axes[0], f"matches the frozen pattern {pattern!r}")
            if not hit:
                raise ConfigurationError(
                    f"frozen pattern {pattern!r} matches no module or parameter of {type(self.model).__name__}"
                    f"{nearest(pattern, self.modules)}"
                )

    def freeze_modules(self) -> None:
        """Freeze the positions of kernels, and layers that keep copies or views of their weights elsewhere."""
        for name, entry in self.owned.items():
            for labels in self.labels[name][entry.channel_dims :]:
                self.space.freeze(labels, None)
        for prefix, module in self.modules.items():
            reason = None
            if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
                reason = f"belongs to the recurrent layer {prefix or type(module).__name__}"
            elif isinstance(module, torch.jit.ScriptModule):
                reason = f"belongs to {prefix}, whose sizes torch.jit has compiled in; prune the model before"
            if reason:
                for name, _ in [*module.named_parameters(), *module.named_buffers()]:
                    full = f"{prefix}.{name}" if prefix else name
                    for labels in self.labels.get(full, ()):
                        self.space.freeze(labels, reason)

    # -- result -------------------------------------------------------------------------------------------------------

    def structure(self) -> Structure:
        """The structure that the passes so far imply."""
        self.space.resolve_balances()
        attributes = list(self.numbers.slots())
        said = (self._tracers(), len(self.space.unions), len(self.space.freezes))
        if self._last is not None and self._last[0] == said:  # nothing new but attributes
            return self._last[1].with_attributes(attributes)
        shapes = {name: tuple(entry.tensor.shape) for name, entry in self.owned.items()}
        parameters = [name for name, entry in self.owned.items() if entry.is_parameter]
        # Only the eval pass is counted; train mode's own layers (auxiliary heads) still make channels.
        counted, *others = (tracer.contractions for _, tracer in self.passes)
        uncounted = [contraction for other in others for contraction in other]
        structure = Structure(
            self.space,
            shapes,
            parameters,
            self.records,
            counted,
            uncounted,
            max(count_examples(self.inputs), 1),
            attributes,
            self.caches,
        )
        structure.passes = Passes(self.on_shapes, self.passes, self._zero_pass)
        self._last = said, structure
        return structure

    @classmethod
    def resume(cls, model: nn.Module, inputs: Inputs, structure: Structure) -> TraceSession:
        """Take up a model that has been traced before, to run a plan dry on it."""
        session = cls(model, inputs, owned_tensors(model))
        check_belongs(
            PruningPlan(shapes=structure.shapes), {n: tuple(e.tensor.shape) for n, e in session.owned.items()}
        )
        session.space = structure.space
        session.labels = {name: [] for name in session.owned}
        for slot, labels in zip(structure.space.slots, structure.space.slot_label_arrays.values(), strict=True):
            session.labels[slot.tensor].append(labels)  # the very arrays that the records hold
        passes = structure.passes
        session.on_shapes, session.passes, session._zero_pass = passes.on_shapes, passes.passes, passes.zero_pass
        return session

    @property
    def records(self) -> list[OpRecord]:
        """The operators of all passes, in the order of their numbers."""
        return [record for tracer in self._tracers() for record in tracer.records]

    def operators_of(self, module: str) -> list[int]:
        """The numbers of the operators that a module itself runs, in their order."""
        return [number for number, record in enumerate(self.records) if record.module == module]

    def _tracers(self) -> list[Tracer]:
        """The tracers of all passes, in the order of their operators' numbers."""
        return [*(tracer for _, tracer in self.passes), *([self._zero_pass] if self._zero_pass else [])]

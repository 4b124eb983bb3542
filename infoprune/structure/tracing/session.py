"""`TraceSession`: run a model on its example inputs and record labels and operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from infoprune.errors import TraceError
from infoprune.inputs import ByMode, Inputs, advice_on
from infoprune.structure.function_caches import cached_functions, emptied
from infoprune.structure.labels import LabelSpace
from infoprune.structure.labels.tensor_labels import TensorLabels
from infoprune.structure.module_state import Attributes, put_back
from infoprune.structure.plan import PruningPlan, check_belongs
from infoprune.structure.tensors import check_materialised, on_meta, owned_tensors, swapped
from infoprune.structure.tracing.copies import copies_of
from infoprune.structure.tracing.examples import in_words, plain, tensors_of
from infoprune.structure.tracing.frozen import freeze_ends
from infoprune.structure.tracing.leaving import freeze_leaving, note_leaving
from infoprune.structure.tracing.outputs import Returned
from infoprune.structure.tracing.passes import Passes, SessionState
from infoprune.structure.tracing.records import OpRecord
from infoprune.structure.tracing.relabel import Recording
from infoprune.structure.tracing.tables import give_numbers
from infoprune.structure.tracing.tracer import Tracer, inputs_on_meta, run_labelled
from infoprune.structure.tracing.unreached import settle_unreached
from infoprune.structure.tracing.values import Values

DRAWS = 4
"""A model that draws random numbers is run with so many different ones, which its control flow may depend on."""

_EVAL_ALWAYS = (_NormBase, nn.modules.dropout._DropoutNd)
"""Layers that are never traced in train mode: they would change statistics or draw random numbers."""


class TraceSession:
    """Run a model on its example inputs with labels attached, as often as needed.

    Args:
        model: the model.
        inputs: its example inputs.
        follow: path of each copy within the model -> path of its original, or None for a copy that stays as it is.

    Attributes:
        owned: its parameters and buffers by name.

    Raises:
        TraceError: a parameter or buffer has no shape yet.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, follow: Mapping[str, str | None] | None = None) -> None:
        owned = owned_tensors(model)
        check_materialised(owned)
        self.model = model
        self.inputs = plain(inputs)
        self.owned = owned
        self.space = LabelSpace()
        self.space.parameters = frozenset(name for name, entry in owned.items() if entry.is_parameter)
        self.modules = dict(model.named_modules())
        self.labels = {name: self.space.add_tensor(name, entry.tensor.shape) for name, entry in owned.items()}
        self.unreached: list[str] = []  # modules that no pass ran, and that have no sibling that did
        self.narrow_too: set[str] = set()  # tensors whose few channels right at an input or output may go
        self.passes = Passes(on_shapes=True)
        self.caches: list[str] = []  # attributes in which the model's code keeps what it has computed
        self.whole, self.copies = copies_of(owned, follow or {})
        self._attributes = Attributes(self.modules.values())
        self._cached_functions = cached_functions(self.modules.values())
        self._module_names = {id(module): name for name, module in self.modules.items()}
        self._running: Tracer | None = None  # the last tracer that was started
        self._recordings: list[Recording] = []  # of the passes on shapes
        self.numbers_made_up = False  # for control flow to read

    @classmethod
    def resume(cls, model: nn.Module, inputs: Inputs, space: LabelSpace, passes: Passes) -> TraceSession:
        """Take up a model that was traced before, to run plans dry on it.

        Raises:
            PlanError: the model's tensors have other names or shapes than those that were traced.
        """
        session = cls(model, inputs)
        shapes = {name: tuple(map(len, axes)) for name, axes in space.labels.items() if axes}
        own = {name: tuple(entry.tensor.shape) for name, entry in session.owned.items()}
        check_belongs(PruningPlan(shapes=shapes), own)
        session.labels = {name: space.labels.get(name, []) for name in own}  # the very arrays that the records hold
        session.space, session.passes = space, passes
        return session

    @property
    def on_shapes(self) -> bool:
        """Return whether the model runs on meta tensors rather than on numbers."""
        return self.passes.on_shapes

    def run(self) -> None:
        """Trace in eval mode, and also in train mode if only that uses some of the parameters."""
        self._recordings = []
        self.numbers_made_up = False  # by the passes that follow
        self.passes = Passes(self.on_shapes, tables_on=self.passes.tables_on)  # operators are numbered anew
        if self.on_shapes:
            try:
                self._run_on_shapes()
            except TraceError:
                raise
            except Exception as error:
                self._run_on_numbers(error)
        else:
            self._run_on_numbers()
        by_mode = isinstance(self.inputs, ByMode)
        if by_mode and not self.on_shapes:
            raise TraceError("what train mode runs cannot be traced, because the model reads values of tensors")
        unused = self._unused()
        if (unused or by_mode) and self.on_shapes:
            self._run_in_train_mode(unused, by_mode)
        self._settle_unused(unused if by_mode else ())
        freeze_ends(self)

    def _run_on_shapes(self) -> None:
        self._unite_copies()
        self._warm_up()
        state, first = self.state(), self._pass(train=False)
        if first.tables:
            device = give_numbers(first.tables, self._recordings[-1], self.owned.values())
            self.restore(state)
            self.passes.tables_on = device or self.passes.tables_on
            first = self._pass(train=False)
        self.passes.traced.append((False, first))
        self._run_with_other_draws(first)
        if self.numbers_made_up and self._unused():
            raise RuntimeError("with numbers that were made up, the control flow leaves out parts of the model")

    def _run_with_other_draws(self, first: Tracer) -> None:
        """Trace with other random numbers than a first pass drew; keep the passes that run other operators."""
        known = [first.operators]
        for seed in range(1, DRAWS if first.drew else 1):
            state = self.state()
            tracer = self._pass(train=False, seed=seed)
            if tracer.operators in known:
                self.restore(state)
                continue
            known.append(tracer.operators)
            self.passes.traced.append((False, tracer))

    def _run_on_numbers(self, on_shapes_error: Exception | None = None) -> None:
        """Trace on real tensors, because the model's code cannot run on shapes."""
        self._recordings = []
        self.space.forget_operators()
        self._unite_copies()
        self.passes = Passes(on_shapes=False)
        try:
            self._warm_up()
            self.passes.traced.append((False, self._pass(train=False)))
        except Exception as error:
            raise self._user_error(error) from on_shapes_error
        self.passes.zeros = self._pass(train=False, stand_ins=self.background())

    def _warm_up(self) -> None:
        """Run a model with scripted modules twice: at first these call other operators, to see what to optimise."""
        if any(isinstance(module, torch.jit.ScriptModule) for module in self.modules.values()):
            state = self.state()
            _ = self._pass(train=False), self._pass(train=False)
            self.restore(state)

    def _run_in_train_mode(self, unused: Sequence[str], by_mode: bool) -> None:
        state = self.state()
        try:
            tracer = self._pass(train=True)
            if by_mode or not tracer.used.isdisjoint(unused):
                self.passes.traced.append((True, tracer))
            else:
                self.restore(state)
        except Exception as error:  # what train mode would need is unknown, so nothing that it shares may be cut
            if by_mode:
                raise self._user_error(error) from error
            self.restore(state)
            self._freeze_near(unused)

    def _settle_unused(self, only_in_training: Sequence[str]) -> None:
        """Freeze, or tie to a sibling, the tensors that no pass used, and those that only train mode used."""
        paired = {name for pair in self.copies for name in pair}
        for name in (name for name in only_in_training if name not in paired):  # of a discriminator or teacher
            self.space.freeze(self.labels[name][0], "is run by the training step only")
        for labels in (labels for name in self.whole for labels in self.labels[name]):
            self.space.freeze(labels, "is part of a copy that stays as it is")
        unused = [name for name in self._unused() if name not in paired and name not in self.whole]
        tied, self.unreached = settle_unreached(self, unused) if unused else (set(), [])
        for name in unused:
            for labels in self.labels[name] if name not in tied else ():
                self.space.freeze(labels, "is never used in the forward pass")

    def state(self) -> SessionState:
        """Return what is known of the model at present, for `restore`."""
        self.space.resolve_balances()
        return SessionState(self.passes, [*self._recordings], self.unreached, self.space.state())

    def restore(self, state: SessionState) -> None:
        """Restore the state that `state` returned, without running or labelling anything."""
        self.passes, self._recordings, self.unreached = state[:3]
        self.space.restore(state.space)

    def retrace(self) -> None:
        """Discard the operators' constraints and label all passes again, with the label space's new constraints."""
        self.space.forget_operators()
        self.space.head_labels.clear()
        if self._recordings and all(recording.is_unchanged() for recording in self._recordings):
            self._replay(self._recordings)
        else:
            self.run()

    def _replay(self, recordings: Sequence[Recording]) -> None:
        """Label the recorded passes anew, without running the model."""
        self._unite_copies()
        self.passes = Passes(self.on_shapes, tables_on=self.passes.tables_on)
        unused: Sequence[str] = ()
        for recording in recordings:
            self.space.resolve_balances()
            if recording.train:
                unused = self._unused()
            tracer = Tracer(self.space, self._module_names, len(self.records), recording.seed)
            freeze_leaving(self.space, recording.replay(tracer))
            self.passes.traced.append((recording.train, tracer))
        self._settle_unused(unused if isinstance(self.inputs, ByMode) else ())
        freeze_ends(self)

    def _unite_copies(self) -> None:
        for copy, original in self.copies:
            for ours, theirs in zip(self.labels[copy], self.labels[original], strict=True):
                self.space.unite(ours, theirs, -1)

    def _unused(self) -> list[str]:
        used = set().union(*(tracer.used for _, tracer in self.passes.traced))
        return [n for n, e in self.owned.items() if n not in used and e.tensor.is_floating_point() and e.tensor.dim()]

    def _freeze_near(self, unused: Sequence[str]) -> None:
        """Freeze all channels: parts of the model that could not be run may read any of them."""
        reason = f"train mode uses {unused[0]}, which eval mode does not, and could not be run on the example inputs"
        for axis in (axis for axes in self.labels.values() for axis in axes):
            self.space.freeze(axis, reason)

    def _user_error(self, error: Exception) -> TraceError:
        where = f" in module {self._running.module!r}" if self._running and self._running.module else ""
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}{advice_on(self.model, self.inputs)}"
        return TraceError(f"the model's forward failed on the example inputs {in_words(self.inputs)}{where}: {reason}")

    def _pass(self, train: bool, stand_ins: dict[str, Tensor] | None = None, seed: int = 0) -> Tracer:
        """Run the model once, recorded, and freeze what leaves it."""
        self._running = tracer = Tracer(self.space, self._module_names, len(self.records), seed)
        recording = tracer.recording = Recording(train, seed) if self.on_shapes else None
        returned = self.run_pass(tracer, train, stand_ins or {})
        if not train:
            returned.check(self.model)
        tracer.recording = None  # the structure keeps the tracer, but none of the tensors
        tracer.results.clear()
        if recording is not None:
            recording.found = tracer.found
            self._recordings.append(recording)
        return tracer

    @torch.inference_mode(False)  # in which composite operators would stay whole
    def run_pass(
        self,
        tracer: Tracer,
        train: bool,
        stand_ins: Mapping[str, Tensor],
        labels: Mapping[str, Sequence[Any]] | None = None,
    ) -> Returned:
        """Run one forward pass, on shapes or on real tensors; the model is left as it was.

        Args:
            tracer: sees the operators.
            train: whether to run in train mode, but for batch norm and dropout.
            stand_ins: name -> tensor that replaces one of the model's.
            labels: name -> labels of each dimension; by default all that the tensors have.

        Returns:
            What the forward returned, with the labels of the tensors in it.
        """
        tracer.tables_on = self.passes.tables_on
        labels = labels or self.labels
        tensors: dict[str, Tensor] = {}
        for name, entry in self.owned.items():
            if name in stand_ins:
                tensors[name] = stand_ins[name]
            elif self.on_shapes and entry.tensor.is_floating_point():
                tensors[name] = on_meta(entry.tensor)
            elif not entry.is_parameter:  # a counter that forward moves on starts anew in each pass
                tensors[name] = entry.tensor.clone()
        labelled_tensors = [
            (tensors.get(name, entry.tensor), TensorLabels(entry.axes(labels[name]), zero=True, origin=name))
            for name, entry in self.owned.items()
        ]
        inputs = inputs_on_meta(self.inputs) if self.on_shapes else self.inputs
        with self._attributes.restored(), swapped(self.owned, tensors):
            put_back(self.modules, tracer.found)  # a model that ran since may hold what it computed then
            for module in self.modules.values():  # past nn.Module.__setattr__: restored together with all the others
                module.__dict__["training"] = train and not isinstance(module, _EVAL_ALWAYS)
            with emptied(self._cached_functions):
                returned = self._run(tracer, inputs, labelled_tensors)
            if tracer is self._running:  # a trace, not a dry run
                own = [tensor for tensor, _ in labelled_tensors]
                self._note_caches(self._attributes.filled(own))
                note_leaving(self, tracer, returned, own, inputs)
                names = self._module_names
                tracer.found = {(names[id(m)], name): value for m, name, value in self._attributes.changed()}
            return returned

    def _run(self, tracer: Tracer, inputs: Inputs, labelled_tensors: Sequence[tuple[Tensor, TensorLabels]]) -> Returned:
        """Run the model; a trace on shapes computes the numbers that control flow reads."""
        if tracer is not self._running or not self.on_shapes:
            return run_labelled(tracer, self.model, inputs, labelled_tensors)
        weights = zip((tensor for tensor, _ in labelled_tensors), (e.tensor for e in self.owned.values()), strict=True)
        values = Values(weights, zip(tensors_of(inputs), tensors_of(self.inputs), strict=True))
        tracer.values = values
        try:
            return run_labelled(tracer, self.model, inputs, labelled_tensors)
        finally:
            tracer.values = None  # holds all tensors of the pass
            self.numbers_made_up |= values.made_up

    def _note_caches(self, filled: Iterable[tuple[nn.Module, str]]) -> None:
        for module, name in filled:
            prefix = self._module_names[id(module)]
            path = f"{prefix}.{name}" if prefix else name
            if path not in self.caches:
                self.caches.append(path)

    def background(self) -> dict[str, Tensor]:
        """Return what replaces the tensors that a dry run does not cut.

        On real tensors all weights are zero, so that the original and the shrunk model compute the same values and
        control flow that depends on them takes the same way.
        """
        if self.on_shapes:
            return {}
        return {n: torch.zeros_like(e.tensor) for n, e in self.owned.items() if e.tensor.is_floating_point()}

    @property
    def records(self) -> list[OpRecord]:
        """Return the operators of all passes, in the order of their numbers."""
        return self.passes.records

    def operators_of(self, module: str) -> list[int]:
        """Return the numbers of the operators that a module itself runs, in their order."""
        return [number for tracer in self.passes.tracers for number in tracer.operators_of(module)]

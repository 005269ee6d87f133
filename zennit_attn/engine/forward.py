'''The state of one run of the root's forward, and what rules may ask of it.'''
from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch.autograd.function import BackwardCFunction

from ..errors import NoRelevance, UnsupportedOperator, UnsupportedRule, UntrackedTensor
from ..operators import Kind
from ..propagation import Call
from ..trees import leaves, rebuilt, tensors_in, tensors_of
from . import messages, vanishing
from .assignments import Assignments
from .constants import Constants
from .domains import Moved, Reindexed, Source, ToGradient, ToRelevance
from .hidden import HiddenWrites
from .memory import Memory
from .origins import Origin, follow
from .parameters import Parameters
from .parts import Parts, Recipe, follow_parts, moved
from .reasons import why_none, why_untracked
from .references import References
from .tags import Tag, gate_of, origin_of, parts_of, tag_of, twin_of
from .weights import Weights, is_expanded
from .written import WrittenSoftmaxes

if TYPE_CHECKING:
    from ..propagation import Running
    from .mode import Engine

    def as_rules_see_it(forward: Forward) -> Running:
        '''A forward is all that rules may expect it to be.'''
        return forward


class Forward:
    '''One run of the root's forward: it is made when the run starts, and nothing of it is left when it ends.

    Parameters
    ----------
    engine: :py:class:`~zennit_attn.engine.Engine`
        The engine of the context, whose location and observer the forward uses.
    rules: dict, optional
        Rules by kind of operator that replace the defaults.

    Attributes
    ----------
    assignments: :py:class:`~zennit_attn.engine.assignments.Assignments`
        Which rule is on what.
    observed: bool
        Whether somebody watches.
    references: :py:class:`~zennit_attn.engine.references.References` or None
        The second stream, if relevance is that of differences from a reference.
    parameters: :py:class:`~zennit_attn.engine.parameters.Parameters`
        The parameters of the model, which its code may write to.
    constants: :py:class:`~zennit_attn.engine.constants.Constants`
        What its code makes of what carries no relevance.
    written: :py:class:`~zennit_attn.engine.written.WrittenSoftmaxes`
        The softmaxes that its code writes out.
    memory: :py:class:`~zennit_attn.engine.memory.Memory`
        What its code has written to memory that tensors share.
    hidden: :py:class:`~zennit_attn.engine.hidden.HiddenWrites`
        What its code writes past autograd.
    last_gate, without_grad: tuple or None
        The last gate that ran, and the first operator without gradients since: name, module and line.
    thread: int
        The thread that it runs in.
    normalizes: bool
        Whether softmaxes may be expanded, so that those that are written out have to be known.
    parted: bool
        Whether there are tensors of which some elements are constants.
    attentive: bool
        Whether parameters were written to, or constants are known, so that each call has to be looked at.
    rounded: list of tuple
        Of what it was said that it rounds.
    ends: bool
        Whether it has to be known in what the model ends.
    refusal: :py:class:`~zennit_attn.errors.UntrackedTensor` or None
        What code in C++ was refused, which may have gone on all the same, or have made another error of it.
    carrying_tag, constant_tag: :py:class:`~zennit_attn.engine.tags.Tag`
        The tags of all tensors that carry relevance, or no relevance, and of which no more is known.
    '''
    def __init__(self, engine: Engine, rules: Mapping[Kind, Callable] | None = None):
        self.engine = engine
        self.observer = engine.observer
        self.observed = engine.observer is not None
        self.location = engine.location
        self.assignments = Assignments(engine.location, rules)
        self.references = self._references()
        self.parameters = Parameters(engine.location)
        self.constants = Constants(self)
        self.written = WrittenSoftmaxes(self)
        self.memory = Memory(self)
        self.hidden = HiddenWrites(self)
        self.thread = threading.get_ident()
        self.identity = object()  # for tags, which must not keep the engine alive
        self.carrying_tag = Tag(self.identity)
        self.constant_tag = Tag(self.identity, carries=False)
        self.direct = not (self.assignments.any or self.observed)
        self.normalizes = self._normalizes()
        self.parted = False
        self.attentive = False
        self.ends = engine.selects
        self._every_end = engine.selects_of_every_end
        self.rounded: list = []
        self.refusal: UntrackedTensor | None = None
        self.last_gate: tuple | None = None
        self._ends: list = []
        self.without_grad: tuple | None = None

    def _references(self) -> References | None:
        found = None
        for name, module, hooks in self.location.ruled:
            for hook in hooks:
                if hasattr(hook, 'reference'):
                    if module is not self.location.root:
                        raise UnsupportedRule(messages.reference_of_a_part(name))
                    found = References(hook.reference)
        return found

    # ---- what rules may ask ------------------------------------------------------------------------------------------

    def locate(self) -> tuple[str, str]:
        '''Return the name of the module whose code runs, and the line that called the operator.'''
        return self.location.locate()

    def is_gate(self, tensor: torch.Tensor) -> bool:
        '''Whether a tensor is a gate where it multiplies one that is none.'''
        origin = origin_of(tensor)
        return origin is not None and origin.is_gate

    def mask_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        '''Return a mask of the elements of a tensor that carry relevance, or None if all do.'''
        parts = parts_of(tensor)
        mask = None if parts is None else parts.mask()
        return None if mask is None or mask.shape != tensor.shape or bool(mask.all()) else mask

    def mark_constant(self, tensor: torch.Tensor) -> torch.Tensor:
        '''Note that a tensor that was written to in place carries no relevance any more, and return it.'''
        if tensor.requires_grad:
            tensor.lrp_tag = self.constant_tag  # type: ignore[attr-defined]  # tensors take attributes
        return tensor

    def before_gate(self, call: Call) -> torch.Tensor | None:
        '''Keep what a gate in place is made of, if that may be asked for.'''
        copy = None if self.references is not None else vanishing.before(call)
        return copy if copy is None else self.mark(copy, origin_of(call.args[0]))

    def note_gate(self, call: Call, output: Any = None, copy: torch.Tensor | None = None) -> None:
        '''Remember a gate, to name it if nothing that carries relevance is left.'''
        self.last_gate, self.without_grad = (call.operator.name, *self.location.place()), None
        target = call.args[0] if call.inplace and call.args[0].requires_grad else output
        if isinstance(target, torch.Tensor):
            target.lrp_gate = self.last_gate  # type: ignore[attr-defined]
        if call.operator.kind is not Kind.SOFTMAX:
            self.constants.note_gate(call, output, copy)

    def note_end(self, call: Call, output: Any) -> None:
        '''Remember what enters a softmax or a gate, in which the model may end: the last one, or if asked for all.'''
        if isinstance(output, torch.Tensor) and len(call.operands) == 1:
            words = f'{call.operator.name} of {self.location.name_of(self.location.running_module()) or "the model"}'
            if not self._every_end:
                self._ends.clear()
            self._ends.append((ref(output), call.operands[0], words))

    def entered(self, output: torch.Tensor) -> tuple[torch.Tensor, str] | None:
        '''Return what enters the softmax or the gate of which an output is the result, a view or a copy.'''
        for made, operand, words in reversed(self._ends):
            end = made()
            if end is None or end.shape != operand.shape:
                continue
            if end is output:
                return operand, words
            if output.dtype == end.dtype and end.is_contiguous() and (
                    output.untyped_storage().data_ptr() == end.untyped_storage().data_ptr()):
                places = torch.arange(end.numel(), device=end.device).as_strided(
                    output.shape, output.stride(), output.storage_offset() - end.storage_offset())
                return operand.reshape(-1)[places], words
            if end.shape == output.shape and torch.equal(end.detach().to(output.dtype), output.detach()):
                return operand.to(output.dtype), words  # a copy, or one of another type
        return None

    def note_without_grad(self, call: Call) -> None:
        '''Remember the first operator since the last gate that ran without gradients, to name it likewise.'''
        if self.without_grad is None:
            self.without_grad = (call.operator.name, *self.locate())

    def decompose(self, function: Callable, args: tuple, kwargs: Mapping, rules: Mapping | None = None) -> Any:
        '''Run code under the engine's eyes, if given with other rules for some kinds of operators.'''
        with self.overriding(rules or {}), self.engine:
            return function(*args, **kwargs)

    # ---- rules -------------------------------------------------------------------------------------------------------

    @contextmanager
    def overriding(self, rules: Mapping[Kind, Callable]) -> Iterator[None]:
        '''Replace the default rules of some kinds of operators.'''
        before = self.direct, self.normalizes
        self.direct = self.direct and not rules
        try:
            with self.assignments.overriding(rules):
                self.normalizes = self._normalizes()
                yield
        finally:
            self.direct, self.normalizes = before[0] and not self.memory.shared, before[1]

    def selected(self, select: Callable, output: Any) -> Any:
        '''Compute what is explained of the root's output, by the rules that hold for the model as a whole.'''
        hooks = next((hooks for _, module, hooks in self.location.ruled if module is self.location.root), ())
        inside: Mapping = next((hook.rules_inside() for hook in hooks if hasattr(hook, 'rules_inside')), {})
        with self.overriding(inside):
            return select(output)

    def rule_of(self, kind: Kind) -> tuple[torch.nn.Module | None, Any]:
        '''Return the operator module of the module whose code runs, and the rule that it was given.'''
        if kind not in self.assignments.kinds and not self.observed:
            return None, None
        return self.assignments.of_operator(kind)

    def _normalizes(self) -> bool:
        return self.references is None and self.assignments.may_have(Kind.SOFTMAX)

    def operation_of(self, kind: Kind) -> Any:
        '''Return the rule that operators of a kind follow in the module whose code runs, or None for one of Zennit.'''
        _, hook = self.rule_of(kind)
        return self.assignments.default(kind) if hook is None else getattr(hook, 'operate', None)

    def expands_softmaxes(self) -> bool:
        '''Whether softmaxes are expanded in the module whose code runs.'''
        return is_expanded(self.operation_of(Kind.SOFTMAX))

    # ---- the two domains ---------------------------------------------------------------------------------------------

    def enter(self, tensor: torch.Tensor) -> torch.Tensor:
        '''Take an input of the root into the gradient domain.'''
        if tensor.requires_grad and tensor.is_complex():
            raise UnsupportedOperator(messages.complex_input(self.location.name_of(self.location.root)))
        return self.start(tensor) if tensor.requires_grad else tensor

    def start(self, tensor: torch.Tensor, module: torch.nn.Module | None = None, args: tuple = ()) -> torch.Tensor:
        '''Take what is explained into the gradient domain: an input of the root, or the output of a module.'''
        if self.references is None:
            return self.to_gradient(tensor)
        root = self.location.name_of(self.location.root)
        return self.to_gradient(tensor, self.references.start(tensor, root, module, args))

    def leave(self, output: Any, selected: bool = False) -> Any:
        '''Return the root's output, or what is selected of it, in the relevance domain.'''
        self.check_output(self.location.root, output)
        if not any(tensor.requires_grad and not self.is_constant(tensor) for tensor in tensors_of(output)):
            raise NoRelevance(why_none(self, leaves(output), selected))
        return rebuilt(output, self._outside)

    def _outside(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.is_constant(tensor):
            return self.to_relevance(tensor, where='output')
        output = tensor.detach()  # else nobody could tell that it carries nothing
        output.lrp_gate = gate_of(tensor)  # type: ignore[attr-defined]
        return output

    def give_back(self, tensor: torch.Tensor) -> torch.Tensor:
        '''Return what the root has left in an argument, such as a cache, in the relevance domain.'''
        tag = tag_of(tensor)
        known = tag is not None and tag.forward is self.identity and tag.carries
        return self.to_relevance(tensor, 'arguments') if known else self.without_way_back(tensor)

    def without_way_back(self, tensor: torch.Tensor) -> torch.Tensor:
        '''Return a tensor, or its values where it is a constant that has kept its way back to the scores.'''
        tag = tag_of(tensor)
        kept = tag is not None and not tag.carries and tag.weighing is not None
        return tensor.detach() if kept else tensor

    def to_gradient(self, tensor: torch.Tensor, reference: torch.Tensor | None = None) -> torch.Tensor:
        '''Convert a tensor of the relevance domain for operator code; its twin stays known.'''
        output = ToGradient.apply(tensor, self.engine.passes, reference)
        if self.references is not None and reference is not None:
            self.references.set(output, reference)
        self.mark_tensor(output, None, Source(tensor))
        return output

    def to_relevance(self, tensor: torch.Tensor, where: str) -> torch.Tensor:
        '''Return a tensor of operator code in the relevance domain: its twin, or else converted.'''
        if not tensor.requires_grad:
            return tensor
        self.check_tag(tensor, where)
        ends = self.references is not None and where in ('output', 'arguments')
        twin = None if ends else twin_of(tensor)
        if twin is not None:
            return twin
        if tensor.is_complex():
            raise UnsupportedOperator(messages.complex_tensor(where))
        report = self.observer and self.observer.stabilizer(where)
        reference = None if self.references is None else self.references.of(tensor)
        if reference is not None and where in ('output', 'arguments'):
            tensor, reference = self._less_reference(tensor, reference, where), None
        return ToRelevance.apply(tensor, self.engine.stabilizer, report, self.engine.passes, reference)

    def _less_reference(self, tensor: torch.Tensor, reference: torch.Tensor, where: str) -> torch.Tensor:
        '''Relevance outside of the model is that of its output, of which what the reference gives is a sink.'''
        report = self.observer and self.observer.reference(where)
        if report:
            tensor = tensor.view_as(tensor)
            tensor.register_hook(lambda grad: report(reference * grad))
        return tensor

    def contribution(self, tensor: torch.Tensor) -> torch.Tensor:
        '''What relevance per unit is multiplied by: a tensor, or what it has more than its reference.'''
        return tensor.detach() if self.references is None else self.references.difference(tensor)

    # ---- tags --------------------------------------------------------------------------------------------------------

    def are_plain(self, operands: list[torch.Tensor]) -> bool:
        '''Whether all that is known of operands is that they carry relevance.'''
        tag = self.carrying_tag
        for operand in operands:  # noqa: SIM110 - a generator for all() would take longer than the rest of the engine
            if getattr(operand, 'lrp_tag', None) is not tag:
                return False
        return True

    def mark(self, output: Any, origin: Origin | None = None, twin: Reindexed | None = None,
             recipe: Recipe | None = None) -> Any:
        '''Tag what an operator returned.'''
        if isinstance(output, torch.Tensor):
            if output.requires_grad:
                self.mark_tensor(output, origin, None if twin is None else Moved(twin, 0),
                           None if recipe is None else Parts(recipe))
            else:
                self.constants.note_cast(output)
        elif isinstance(output, (tuple, list)):
            for index, item in enumerate(output):
                if isinstance(item, torch.Tensor):
                    if item.requires_grad:
                        self.mark_tensor(item, origin, None if twin is None else Moved(twin, index),
                                   None if recipe is None else Parts(recipe, index))
                else:
                    self.mark(item)
        return output

    def mark_mixed(self, output: Any, func: Callable, args: tuple, kwargs: Mapping, operands: list) -> Any:
        '''Tag what a function returned that moves values and puts constants beside them.'''
        return self.mark(output, recipe=moved(
            func, args, kwargs, lambda tensor: any(tensor is operand for operand in operands)))

    def mark_tensor(self, tensor: Any, origin: Origin | None, twin: Callable | None,
                    parts: Parts | None = None) -> None:
        '''Tag a tensor that requires a gradient.'''
        if not torch.is_grad_enabled():
            # A view that is made without gradients claims to require one all the same, but none ever reaches its base.
            # Some functions return what they are given, such as a cast to the type that it has.
            tag = tag_of(tensor)
            if tag is None or tag.forward is not self.identity:
                tensor.lrp_tag = self.constant_tag
        elif origin is None and twin is None and parts is None:
            tensor.lrp_tag = self.carrying_tag
        else:
            self.parted = self.parted or parts is not None
            tensor.lrp_tag = Tag(self.identity, True, origin, twin, tensor._version, parts)

    def mark_weights(self, output: Any, weights: Weights | None, carries: bool = True) -> None:
        '''Note what tensors are to a softmax that is written out, and whether they carry relevance by themselves.'''
        for tensor in tensors_in(output):
            tag = tag_of(tensor)
            if tensor.requires_grad and not (carries and (tag is None or not tag.carries)):
                origin, twin, parts = (origin_of(tensor), tag.twin, parts_of(tensor)) if (
                    carries and tag is not None) else (None, None, None)
                tensor.lrp_tag = Tag(self.identity, carries, origin, twin, tensor._version, parts, weights)

    def mark_result(self, call: Call, output: Any, origins: list, states: list | None, base: bool | Parts) -> None:
        '''Tag what a call returned or wrote to.

        Parameters
        ----------
        call: :py:class:`~zennit_attn.propagation.Call`
        output: object
            What it returned.
        origins, states: list
            The origins of its operands, and which of their elements carry relevance, before it. No states if all do.
        base: bool or :py:class:`~zennit_attn.engine.parts.Parts`
            The same of what the tensor that it writes to is a view of.
        '''
        if self.references is not None:
            self.references.follow(call, output)
        origin = follow(call, origins)
        recipe = None if states is None and not call.operator.mixes else follow_parts(call, states)
        if output is None or call.inplace:
            self._mark_target(call, origin, recipe)
            self.memory.written(call.args[0], base)
        elif call.operator.kind is not Kind.COMPOSED and not call.carries(output):  # which is tagged by its steps
            moves = call.operator.kind in (Kind.REARRANGE, Kind.SELECT) and not call.accumulates and (
                call.rule is None or call.rule.moves) and not (
                any(operand.is_complex() for operand in call.operands))  # of which some are conjugated
            twin = Reindexed(call, call.record) if self.assignments.modules and moves else None
            self.mark(output, origin, twin, recipe)

    def _mark_target(self, call: Call, origin: Origin | None, recipe: Recipe | None) -> None:
        target, several = call.args[0], len(call.operands) > 1
        if call.operator.overwrites and not several and call.carries(target):
            self.mark_constant(target)
        elif not self.is_constant(target) or (call.operator.kind is Kind.REARRANGE and several):
            self.mark(target, origin, recipe=recipe)

    def is_constant(self, tensor: torch.Tensor) -> bool:
        '''Whether a tensor that requires a gradient carries nothing, because it became a gate in place.'''
        tag = tag_of(tensor)
        return tag is not None and not tag.carries

    # ---- checks ------------------------------------------------------------------------------------------------------

    def check_not_passed_by(self) -> None:
        '''Refuse code of a module with a rule that was called as a function, past the rule.'''
        module = self.location.running_module()
        _, hooks = self.assignments.modules.get(id(module), (None, ()))
        if hooks and not hasattr(hooks[0], 'rules_inside'):
            raise UnsupportedRule(messages.passed_by(*self.locate(), type(module).__name__, type(hooks[0]).__name__))

    def check_output(self, module: torch.nn.Module, output: Any) -> None:
        '''Refuse what a module returns if it comes from code that the engine cannot see.'''
        for tensor in tensors_of(output):
            tag = tag_of(tensor)
            known = tag is not None and tag is not self.constant_tag and tag.forward is self.identity
            if not known and tensor.requires_grad:
                self.check_tag(tensor, self.location.name_of(module))

    def check_tag(self, tensor: torch.Tensor, where: str | None = None) -> None:
        '''Refuse a carrying tensor that the engine has not produced in this forward.'''
        tag = tag_of(tensor)
        inside = tag is self.constant_tag and isinstance(tensor.grad_fn, BackwardCFunction)
        if tag is not None and tag.forward is self.identity and not inside:
            return
        if self._is_known(tensor, inside):
            tensor.lrp_tag = self.carrying_tag  # type: ignore[attr-defined]
            return
        if self.engine.unknown != 'gradient':
            raise UntrackedTensor(why_untracked(self, tensor, tag, where))
        self.accept(type(tensor.grad_fn).__name__, 'it is used here, and its code cannot be seen', where)
        tensor.lrp_tag = self.carrying_tag  # type: ignore[attr-defined]

    def _is_known(self, tensor: torch.Tensor, inside: bool) -> bool:
        if inside:
            # The identity around a module with a backward hook of the user, whose result is a view that it made itself.
            return type(tensor.grad_fn).__name__ == 'BackwardHookFunctionBackward'
        base = None if tensor._base is None else tag_of(tensor._base)
        return base is not None and base.forward is self.identity

    def accept(self, name: str, why: str, module: str | None = None) -> None:
        '''Tell the observer what has no rule, and runs by its plain gradient.'''
        if self.observer is not None:
            running, line = self.locate()
            self.observer.accepted(module or running, name, why, line)

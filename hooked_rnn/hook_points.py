"""Hook points whose hooks each own the tensor that they are given.

Two kinds, told apart by where the model calls them:

- :class:`IsolatedHookPoint` fires once in a forward pass, on the whole [batch, pos, d] activation; or on one
  step's, [batch, d], where it is the point of one step alone.
- :class:`StepHookPoint` fires once in each step of the loop over time. The network hands it one
  [batch, d] step; every hook sees a [batch, pos, d] tensor and decides about its position ``step``.

Hooks are registered exactly as on any TransformerLens ``HookPoint`` (they end up in torch's own
dictionaries, which is what is read here), so levels, permanence, ``prepend``, ``list_hooks`` and
``reset_hooks`` are TransformerLens's. What differs is how they are run: all that a pass remembers lives
in objects made for that pass, so a hook that raises, or that runs the model again, leaves nothing behind.

As in TransformerLens, all backward hooks at a point are given the gradient of what left the point (after
its forward hooks), and the last one to return or to edit a gradient decides what goes on to what came in.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import local
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from hooked_rnn.errors import HookError
from hooked_rnn.transforms import is_transformed, values_are_hidden

GradientHooks = Callable[[Tensor], Tensor | None]


class ObservingHook:
    """Base of hooks that only look: they never write in their tensor and return nothing.

    In exchange they are cheap: they get the network's own detached values, not a copy, and inside the
    time loop they are called once, after the last step (backward: at every step, with one tensor that
    fills from the last position to the first). Without autograd two of them may be given one tensor.
    """

    def __call__(self, tensor: Float[Tensor, "batch *pos d"], hook: HookPoint) -> None:
        raise NotImplementedError


class IsolatedHookPoint(HookPoint):
    """A hook point that fires once in a forward pass, and whose hooks cannot spoil each other's tensors."""

    @property
    def step(self) -> int | None:
        """The position that the time loop has reached; None outside it."""
        return None

    @property
    def n_steps(self) -> int | None:
        """How many positions the time loop will visit; None outside it."""
        return None

    @property
    def is_hooked(self) -> bool:
        """Whether any hook is registered, through TransformerLens or on the module itself."""
        return bool(self._forward_hooks or self._backward_hooks)

    @property
    def may_edit(self) -> bool:
        """Whether any of the hooks is not known to be one that only looks."""
        return any(not self._observes(hook_id) for hook_id in (*self._forward_hooks, *self._backward_hooks))

    def __call__(self, x: Float[Tensor, "batch *pos d"]) -> Float[Tensor, "batch *pos d"]:
        """What the hooks make of the activation: itself, where there are none."""
        if not self.is_hooked:
            return x
        left = x
        for hook_id, function in list(self._forward_hooks.items()):
            left = self._once(hook_id, function, left)
        backward = list(self._backward_hooks.items())
        return _with_gradient_hooks(x, left, lambda grad: self._gradient_once(backward, grad)) if backward else left

    def _once(self, hook_id: int, function: Callable[..., Any], x: Tensor) -> Tensor:
        if self._observes(hook_id):
            self._run_forward(hook_id, function, x.detach())
            return x
        own = x.clone()
        return self._checked(self._run_forward(hook_id, function, own), own, _kind(x))

    def _gradient_once(self, hooks: list[tuple[int, Callable[..., Any]]], grad: Tensor) -> Tensor | None:
        replaced = None
        for hook_id, function in hooks:
            own = grad.clone()  # for those that only look, too: autograd may make grad itself a parameter's .grad
            version = _version(own)
            result = self._run_backward(function, own)
            if not self._observes(hook_id) and (result is not None or _version(own) != version):
                replaced = self._checked(result, own, _kind(grad))
        return replaced

    def _observes(self, hook_id: int) -> bool:
        return any(
            h.hook.id == hook_id and isinstance(h.user_hook, ObservingHook) for h in self.fwd_hooks + self.bwd_hooks
        )

    def _run_forward(self, hook_id: int, function: Callable[..., Any], tensor: Tensor) -> Any:
        if hook_id in self._forward_hooks_with_kwargs:
            return function(self, (tensor,), {}, tensor)
        return function(self, (tensor,), tensor)

    def _run_backward(self, function: Callable[..., Any], grad: Tensor) -> Any:
        result = function(self, (grad,), (grad,))
        return result[0] if isinstance(result, tuple) else result

    def _checked(self, result: Any, own: Tensor, given: "_Kind") -> Tensor:
        """What a hook makes of the tensor that it was given: its result, or where that is None the tensor itself, ``own``.

        Raises:
            HookError: that is no tensor, or not of the kind that it was ``given``.
        """
        edited = own if result is None else result
        if not isinstance(edited, Tensor):
            raise HookError(
                f"a hook on {self.name} returned {type(edited).__name__}: expected None or a tensor of shape {given[0]}"
            )
        if _kind(edited) == given:
            return edited
        did = "made its tensor one of" if edited is own else "returned a tensor of"
        for what, got, expected in zip(("shape", "dtype", "device"), _kind(edited), given, strict=True):
            if got != expected:
                raise HookError(f"a hook on {self.name} {did} {what} {got}: expected {expected}, as it was given")
        return edited

    def _refuse(self, kind: str) -> NoReturn:
        raise HookError(
            f"{self.name} does not run {kind} hooks: expected add_hook(hook, dir='fwd' or 'bwd'), a forward hook or a full backward hook"
        )

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("forward pre-")

    def register_full_backward_pre_hook(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("backward pre-")

    def register_backward_hook(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("non-full backward")


class StepHookPoint(IsolatedHookPoint):
    """A hook point inside the loop over time. The model asks :meth:`loop` for one pass and calls that.

    At step t a hook is given its own [batch, pos, d] tensor. Position t holds what reaches the hook now,
    earlier positions what reached it at those steps, later positions zeros. Position t of what it
    returns (or of the tensor, if it edited that in place) goes on, and all later steps see it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._positions = _Positions()

    @property
    def step(self) -> int | None:
        return self._positions.now[0]

    @property
    def n_steps(self) -> int | None:
        return self._positions.now[1]

    def loop(self, n_steps: int) -> "StepLoop":
        """One pass over ``n_steps`` steps, to be called in time order."""
        return _Loop(self, n_steps)

    @contextmanager
    def _at(self, step: int, n_steps: int) -> Iterator[None]:
        before = self._positions.now  # not None where a hook runs the model again
        self._positions.now = step, n_steps
        try:
            yield
        finally:
            self._positions.now = before


class _Positions(local):
    """Where the loops over time are that a hook point is in, each thread's own.

    A point's copies share it: TransformerLens hands every hook the point that it was first added to, which is the
    original's, while the copy's loop is what runs.
    """

    now: tuple[int, int] | tuple[None, None] = (None, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Positions":
        return self

    def __reduce__(self) -> tuple[type["_Positions"], tuple[()]]:
        return _Positions, ()


class StepLoop:
    """One forward pass of a hook point over the steps; here, of one that has no hooks."""

    def __call__(self, x: Float[Tensor, "batch d"], step: int) -> Float[Tensor, "batch d"]:
        """What the point makes of one step's activation."""
        return x

    def room(self, like: Float[Tensor, "batch d"], step: int) -> Float[Tensor, "batch d"] | None:
        """Where to write what will arrive at this step, to save a copy; None for wherever.

        What is written there must not be written over.
        """
        return None

    def stacked(self, left: list[Tensor]) -> Float[Tensor, "batch pos d"]:
        """All that left the point, of every step in time order, not to be written over either."""
        return torch.stack(left, dim=1)


class _Loop(StepLoop):
    """One forward pass of one hook point over the steps, with the tensor of each of its hooks."""

    def __init__(self, point: StepHookPoint, n_steps: int) -> None:
        self.point = point
        self.n_steps = n_steps
        self.tensors: dict[int, _Rows] = {}
        self.left: _Rows | None = None
        # Apart, because the graph keeps it: if it knew of the tensors above, whose graph that is, nothing
        # would ever be freed.
        self.backward = _BackwardLoop(point, n_steps)

    def __call__(self, x: Float[Tensor, "batch d"], step: int) -> Float[Tensor, "batch d"]:
        point = self.point
        forward = list(point._forward_hooks.items())
        left = x
        for hook_id, function in forward:
            left = self._run(hook_id, function, left, step)
        self._note_what_left(forward, step)
        hooks = list(point._backward_hooks.items())
        if not hooks:
            return left
        out = _with_gradient_hooks(x, left, partial(self.backward, hooks, step))
        if out.grad_fn is not None and (x.requires_grad or left.requires_grad):
            self.backward.nodes[step] = weakref.ref(out.grad_fn)
        return out

    def room(self, like: Float[Tensor, "batch d"], step: int) -> Float[Tensor, "batch d"] | None:
        first = next(iter(self.point._forward_hooks), None)
        if first is None or not self.point._observes(first) or not _may_recycle(like):
            return None
        return self._shared(first).room(like, step)

    def stacked(self, left: list[Tensor]) -> Float[Tensor, "batch pos d"]:
        if not _only_values_count(left[0]):
            return torch.stack(left, dim=1)
        if self.left is not None and self.left.filled is not None:
            return self.left.filled
        spare = (rows.spare() for rows in self.tensors.values())
        return torch.stack(left, dim=1, out=next((tensor for tensor in spare if tensor is not None), None))

    def _note_what_left(self, hooks: list[tuple[int, Callable[..., Any]]], step: int) -> None:
        """Remember the tensor that holds all that left so far: the last hook's, if at every step that one only looked."""
        rows = self.tensors.get(hooks[-1][0]) if hooks else None
        self.left = rows if isinstance(rows, _SharedRows) and (step == 0 or rows is self.left) else None

    def _run(self, hook_id: int, function: Callable[..., Any], x: Tensor, step: int) -> Tensor:
        if self.point._observes(hook_id):
            rows = self._shared(hook_id).at(x, step)
            if step == self.n_steps - 1:
                with self.point._at(step, self.n_steps):
                    self.point._run_forward(hook_id, function, rows)
            return x
        tensor = self._own(hook_id)
        own = tensor.at(x, step)
        version, given = _version(own), _kind(own)
        with self.point._at(step, self.n_steps):
            result = self.point._run_forward(hook_id, function, own)
        self.backward.given = weakref.ref(own)
        edited = self.point._checked(result, own, given)
        return tensor.left(own, edited, x, step, written=version is None or _version(own) != version)

    def _shared(self, hook_id: int) -> "_SharedRows":
        rows = self.tensors.setdefault(hook_id, _SharedRows(self.n_steps, self.n_steps - 1))
        assert isinstance(rows, _SharedRows)
        return rows

    def _own(self, hook_id: int) -> "_OwnTensor":
        rows = self.tensors.setdefault(hook_id, _OwnTensor(self.n_steps, self.n_steps - 1))
        assert isinstance(rows, _OwnTensor)
        return rows


class _BackwardLoop:
    """The backward passes of one hook point over the steps of one forward pass."""

    def __init__(self, point: StepHookPoint, n_steps: int) -> None:
        self.point = point
        self.n_steps = n_steps
        self.tensors: dict[int, _Rows] = {}
        self.task = -1
        self.reached = n_steps
        self.nodes: dict[int, weakref.ref[Any]] = {}
        """The graph's node of each step; weak, as the nodes have this object."""
        self.given: weakref.ref[Tensor] | None = None
        """What the last forward hook that is no observer was given last."""

    def __call__(self, hooks: list[tuple[int, Callable[..., Any]]], step: int, grad: Tensor) -> Tensor | None:
        """What the hooks make of one step's gradient; None where they leave it alone.

        Raises:
            HookError: a forward hook of this point kept what it was given, and the pass ends before the first step.
        """
        self._begin(step)
        self._check_goes_on(step)
        replaced = None
        with self.point._at(step, self.n_steps):
            for hook_id, function in hooks:
                kind = _SharedRows if self.point._observes(hook_id) else _OwnTensor
                own = self.tensors.setdefault(hook_id, kind(self.n_steps, last=0)).at(grad, step)
                version, given = _version(own), _kind(own)
                result = self.point._run_backward(function, own)
                if result is not None or _version(own) != version:
                    replaced = self.point._checked(result, own, given)[:, step].clone()
        if step == 0:
            self.tensors = {}
        return replaced

    def _begin(self, step: int) -> None:
        """Forget the gradients of an earlier backward pass through the same graph."""
        task = torch._C._current_graph_task_id()
        if task != self.task or step >= self.reached:
            self.tensors = {}
        self.task, self.reached = task, step

    def _check_goes_on(self, step: int) -> None:
        """Refuse gradients that would be zero for no reason but that the pass ends inside the loop.

        So it is where a tool differentiates with respect to the tensor that its forward hook kept, which is one
        step's view and not on the way, and reads the backward hook for gradients.
        """
        if step == 0 or self.given is None or self.given() is None:
            return
        here, before = (self.nodes.get(t, lambda: None)() for t in (step, step - 1))
        if before is None or torch._C._will_engine_execute_node(before) or not _leads_to(here, before):
            return
        raise HookError(
            f"{self.point.name} has no gradient at step {step - 1}, as the backward pass ends before it: "
            "expected step points (blocks.{l}.steps.{t}.hook_*), which have gradients of their own, or run_with_cache(incl_bwd=True)"
        )


class _Rows:
    """A [batch, pos, d] tensor that is filled as steps arrive, the ``last`` of them last."""

    def __init__(self, n_steps: int, last: int) -> None:
        self.n_steps = n_steps
        self.last = last
        self.filled: Tensor | None = None

    def at(self, x: Tensor, step: int) -> Tensor:
        raise NotImplementedError

    def spare(self) -> Tensor | None:
        """The tensor, if nobody else has it any more."""
        return None

    def _fill(self, x: Tensor, step: int) -> Tensor:
        filled = self._made(x, step)
        filled[:, step] = x
        return filled

    def _made(self, like: Tensor, step: int) -> Tensor:
        if self.filled is None:
            # A forward pass that is seen from its first step writes every position. Elsewhere not every
            # step needs to come: an edit cuts the backward pass off, a hook is added while the loop runs.
            whole = isinstance(self, _SharedRows) and step == 0 and self.last == self.n_steps - 1
            make = like.new_empty if whole else like.new_zeros
            self.filled = make(like.shape[0], self.n_steps, like.shape[1])
        return self.filled


class _OwnTensor(_Rows):
    """The tensor of one hook that may edit."""

    def __init__(self, n_steps: int, last: int) -> None:
        super().__init__(n_steps, last)
        self.arrived: dict[int, Tensor] = {}
        self.linked: _LinkedRows | None = _LinkedRows()

    def at(self, x: Tensor, step: int) -> Tensor:
        self.arrived[step] = x
        # One memory is filled step by step, which costs O(T) in all, and the last step's tensor made anew
        # from what arrived: the hook may have written at other positions.
        if not self._may_link(x):
            self.linked = None  # for the rest of the pass: the chain would lack this step
        if torch.is_grad_enabled():
            if self.linked is None or step == self.last:
                return self._rebuilt(None)
            return self.linked.at(x, step, self._rebuilt)
        if step == self.last:
            self.filled = self._rebuilt(self.spare() if _only_values_count(x) else None)
        else:
            self._fill(x, step)
        assert self.filled is not None
        # Never the tensor itself, or it could not be told whether a hook keeps it, and one could replace its
        # ``data``. (But a tangent would not find its way back.)
        return self.filled.detach() if _only_values_count(x) else self.filled

    def _may_link(self, x: Tensor) -> bool:
        """Whether a node of our own may stand for the stack of what arrived: see :class:`_LinkedRows`."""
        first = next(iter(self.arrived.values()))  # under autocast a stack may be of a wider type
        elsewhere = torch.is_inference_mode_enabled() or torch.compiler.is_compiling() or is_transformed()
        return torch.is_grad_enabled() and x.dtype == first.dtype and not elsewhere

    def _rebuilt(self, out: Tensor | None = None) -> Tensor:
        zeros = torch.zeros_like(next(iter(self.arrived.values())))
        return torch.stack([self.arrived.get(step, zeros) for step in range(self.n_steps)], dim=1, out=out)

    def left(self, own: Tensor, edited: Tensor, x: Tensor, step: int, written: bool) -> Tensor:
        """What goes on of the hook's result, ``edited``, which may be what it was given, ``own``."""
        if torch.is_grad_enabled():
            # An untouched step goes on as it came: its gradient need not pass through all the others.
            # Values are compared too, since a write through .data leaves the version as it was.
            matters = edited is own or self.linked is not None
            untouched = matters and not written and _same_values(own[:, step], x)
            if self.linked is not None:
                self.linked.holds_what_arrived = untouched
        else:
            # Likewise, so as not to keep it twice: where memory is new, that costs more than comparing.
            untouched = edited is own and _may_recycle(x) and _same_bits(own, x, step)
        # A copy, or one step would keep all of them in memory.
        return x if untouched and edited is own else edited[:, step].clone()

    def spare(self) -> Tensor | None:
        return self.filled if self.filled is not None and _holders(self.filled) == _ONE_HOLDER else None


class _LinkedRows:
    """The tensors that a hook is given under autograd: one memory, and for each step a node of the graph.

    A stack of what arrived at every step so far would cost O(T) at each. Here the next row is written
    beside those that are there, where nobody can tell: autograd, the hook or a result of its that is a view
    may still hold the memory, or the hook may have written in it. It is left to them then, and what arrived
    is stacked anew.
    """

    def __init__(self) -> None:
        self.filled: Tensor | None = None
        self.version = 0
        self.link: Tensor | None = None
        self.holds_what_arrived = False
        """Whether the hook of the last step is known to have left the memory as it was."""

    def at(self, x: Tensor, step: int, stacked: Callable[[], Tensor]) -> Tensor:
        """The tensor of one step, ``stacked()`` in values and gradients."""
        with torch.no_grad():
            filled = self._reusable()
            if filled is None:
                filled = stacked()
            else:
                filled[:, step] = x
        if self.link is None:
            self.link = x.new_empty_strided(filled.shape, (0, 0, 0))
        self.link = _Link.apply(self.link, x, step)
        self.filled, self.version, self.holds_what_arrived = filled, filled._version, False
        return _Shown.apply(self.link, filled)

    def _reusable(self) -> Tensor | None:
        filled = self.filled
        if filled is None or not self.holds_what_arrived or filled._version != self.version:
            return None
        return filled if _holders(filled) == _ONE_HOLDER else None


class _Link(torch.autograd.Function):
    """The link of one step, from that of the step before and what arrived: for gradients, the stack of all that arrived.

    The gradient by row s belongs to what arrived at step s, and node s alone can pass it there. So each node
    takes its own row of the gradient and hands all of it on, uncopied, to the node before. A link is of the
    gradient's shape, for that, and of one element's memory. Nothing is saved: the map is linear.
    """

    @staticmethod
    def forward(ctx: Any, link: Tensor, x: Tensor, step: int) -> Tensor:
        ctx.step = step
        return link.new_empty_strided(link.shape, (0, 0, 0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        return grad, grad[:, ctx.step], None


class _Shown(torch.autograd.Function):
    """What the hook is given: the values of ``filled``, the gradients of ``link``.

    A node apart, so that a hook on this tensor's gradient runs only where the tensor has one.
    """

    @staticmethod
    def forward(ctx: Any, link: Tensor, filled: Tensor) -> Tensor:
        # Detached, not ``.data``: a write that autograd should have been asked about then raises in backward.
        return filled.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _SharedRows(_Rows):
    """The tensor of one hook that only looks: each step is copied once, and nothing else is kept."""

    def __init__(self, n_steps: int, last: int) -> None:
        super().__init__(n_steps, last)
        self.row: Tensor | None = None

    def at(self, x: Tensor, step: int) -> Tensor:
        if x is self.row and self.filled is not None:
            return self.filled
        with torch.no_grad():
            return self._fill(x, step)

    def room(self, like: Tensor, step: int) -> Tensor:
        """The step's position, to be written by whoever asks for it."""
        self.row = self._made(like, step)[:, step]
        return self.row


class _HookGradient(torch.autograd.Function):
    """Identity on what left a hook point, whose backward runs the point's backward hooks.

    ``arrived`` is an input too: a gradient that a hook replaced goes to it, past the forward hooks, as it
    does on torch's own modules.
    """

    @staticmethod
    def forward(ctx: Any, arrived: Tensor, left: Tensor, run: GradientHooks) -> Tensor:
        ctx.run = run
        return left.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        replaced = ctx.run(grad)
        return (None, grad, None) if replaced is None else (replaced, None, None)


def _with_gradient_hooks(arrived: Tensor, left: Tensor, run: GradientHooks) -> Tensor:
    """What left a hook point, such that ``run`` is told its gradient.

    Also where autograd has no graph of it, as of a constant that was patched in, or of an LSTM's cell state
    before the first step: there a graph begins.
    """
    if not (arrived.requires_grad or left.requires_grad):
        if not torch.is_grad_enabled() or left.is_inference() or is_transformed():
            return left
        left = left.detach().requires_grad_()
    return _HookGradient.apply(arrived, left, run)


def _leads_to(node: Any, target: Any) -> bool:
    """Whether the graph has a way from one node up to another."""
    seen, left = set(), [node]
    while left:
        node = left.pop()
        if node is target:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            left.extend(before for before, _ in node.next_functions)
    return False


_Kind = tuple[tuple[int, ...], torch.dtype, torch.device]
"""What has to be the same of an activation and of what a hook makes of it."""


def _kind(tensor: Tensor) -> _Kind:
    return tuple(tensor.shape), tensor.dtype, tensor.device


def _version(tensor: Tensor) -> int | None:
    """How often the tensor was written to; None where torch does not count (inference mode)."""
    return None if tensor.is_inference() else tensor._version


def _only_values_count(x: Tensor) -> bool:
    """Whether tensors may be written in place of new ones: no graph, tangent, transform or autocast is about."""
    return not (torch.is_grad_enabled() or is_transformed() or torch.is_autocast_enabled(x.device.type))


def _may_recycle(x: Tensor) -> bool:
    """The same, where it pays: on a GPU new memory is cheap, comparing waits, and strides may change a product's bits."""
    return x.device.type == "cpu" and _only_values_count(x)


def _same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal; False where that cannot be told."""
    return not (values_are_hidden(a) or values_are_hidden(b)) and torch.equal(a, b)


def _same_bits(tensor: Tensor, x: Tensor, step: int) -> bool:
    """Whether one step of a tensor is ``x``, signs of zeros and all; False where that is slow to tell."""
    if not (tensor.is_contiguous() and x.is_contiguous()):
        return False
    if any(n * x.element_size() % 8 for n in (x.shape[-1], x.storage_offset(), tensor.storage_offset())):
        return False
    return torch.equal(tensor.view(torch.int64)[:, step], x.view(torch.int64))


def _holders(tensor: Tensor) -> int:
    """How many tensors share the tensor's memory, views and arrays of theirs too; up to a constant."""
    return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))


_ONE_HOLDER = _holders(torch.empty(0))
"""The count of a tensor that shares its memory with no other."""

"""CUDA graphs of a denoiser: its forward and its backward are one launch each.

On a fast card a UNet's batch of one pair takes the host longer to launch than the GPU to compute. The kernels, and so
the bits, are those of the module itself. What a graph reads and writes stays where it was captured: the activations
are never given back, and the gradients exist once more than the optimizer's.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

_WARM = 3
"""How often a module runs before a capture, while libraries choose kernels and take workspaces."""


class Graphs:
    """Takes the place of a module's `forward` in training: captures a graph at the first batch, and replays it.

    One graph for each shape of inputs, and one more for an adapter that is switched off. Without gradients, or in
    eval(), the module runs as it is.

    Args:
        module: on a CUDA device, with its trained parameters marked; gives one tensor, or an output object with one.
        trains: whether a backward pass follows; a reference has none.
    """

    def __init__(self, module: nn.Module, trains: bool) -> None:
        self._module, self._forward, self._trains = module, module.forward, trains
        self._adapter = next((part for part in module.modules() if isinstance(part, BaseTunerLayer)), None)
        self._graphs: dict[Any, _Graph] = {}
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replay the graph of these inputs' shapes, captured now if there is none yet."""
        if not (self._module.training and torch.is_grad_enabled()):
            return self._forward(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        scale = tuple(self._adapter.scaling.values()) if self._adapter else ()
        shapes = tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        key = (str(spec), shapes, scale)
        if key not in self._graphs:
            trained = [p for p in self._module.parameters() if p.requires_grad] if self._trains and all(scale) else []
            self._graphs[key] = _Graph(self._forward, leaves, spec, trained)
        return self._graphs[key](leaves)


class _Graph:
    """A module's run on inputs of fixed shapes; `trained` are the parameters that get gradients, empty for none."""

    def __init__(self, forward: Any, leaves: list[Any], spec: TreeSpec, trained: list[nn.Parameter]) -> None:
        self._inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._trained = trained
        self._handed: list[Tensor | None] = []

        def run() -> Tensor:
            args, kwargs = tree_unflatten(self._inputs, spec)
            (output,), self._output_spec = tree_flatten(forward(*args, **kwargs))
            return output

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM):
                output = run()
                if trained:
                    torch.autograd.grad(output, trained, torch.zeros_like(output), allow_unused=True)
            del output
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.empty_cache()  # the graphs have memory of their own
        self._run, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        with torch.cuda.graph(self._run, pool=pool):
            self._output = run()
        if trained:
            self._grad_output = torch.zeros_like(self._output)
            self._back = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._back, pool=pool):
                self._grads = torch.autograd.grad(self._output, trained, self._grad_output, allow_unused=True)
        self._output = self._output.detach()

    def __call__(self, leaves: list[Any]) -> Any:
        for ours, theirs in zip(self._inputs, leaves, strict=True):
            if isinstance(ours, Tensor):
                ours.copy_(theirs)
        output = _Replay.apply(self, *self._trained)
        return tree_unflatten([output], self._output_spec)

    def replay(self) -> Tensor:
        """Run forward on the inputs; the output's memory is the next run's too."""
        self._run.replay()
        return self._output.detach() if self._trained else self._output.clone()

    def replay_backward(self, grad_output: Tensor) -> list[Tensor | None]:
        """Run backward; the gradients' memory is the next run's too.

        They are kept here as well: autograd takes what nobody else holds for its own, and the next replay would write
        into a parameter's `grad`. So it copies the first and adds the others.
        """
        self._grad_output.copy_(grad_output)
        self._back.replay()
        self._handed = [None if grad is None else grad.detach() for grad in self._grads]
        return self._handed


class _Replay(torch.autograd.Function):
    """The autograd function of a captured graph."""

    @staticmethod
    def forward(ctx: Any, graph: _Graph, *trained: Tensor) -> Tensor:
        """Replay the forward graph; the parameters are arguments so that autograd asks for their gradients."""
        ctx.graph = graph
        return graph.replay()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Replay the backward graph; a gradient for each parameter."""
        return None, *ctx.graph.replay_backward(grad_output)

"""Steps that write into memory behind a tracer's back, and therefore are not traced."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch._C import _TorchDispatchModeKey
from torch._compile import _disable_dynamo

Step = TypeVar("Step", bound=Callable)


def untraced(step: Step) -> Step:
    """Run a step as it is under torch.compile, which breaks its graph there; refuse it under make_fx.

    There is nothing to compile in it: a step is a handful of launches, whatever the number of tensors.
    """

    @wraps(step)
    def run(*arguments: Any, **options: Any) -> Any:
        if torch._C._get_dispatch_mode(_TorchDispatchModeKey.PROXY) is not None:
            raise RuntimeError("the step of AdamW8bit writes into memory, which make_fx does not see: trace the model")
        return step(*arguments, **options)

    disabled: Any = _disable_dynamo(run)
    return disabled

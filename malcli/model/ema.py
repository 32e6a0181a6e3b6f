"""The teacher: an exponential moving average of the student (Sec. 3.2)."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every parameter of the teacher: t <- m t + (1 - m) s, in float32.

    Buffers (running statistics of a batch norm) are copied: the teacher never trains.

    Args:
        teacher: Network of the student's architecture, changed in place.
        student: The task network.
        momentum: m in [0, 1]; the paper's is 0.996.

    Source: Sec. 3.2, Sec. 4.2.
    """
    target: list[Tensor] = list(teacher.parameters())
    source = [parameter.detach().to(torch.float32) for parameter in student.parameters()]
    torch._foreach_lerp_(target, source, 1 - momentum)
    for kept, new in zip(teacher.buffers(), student.buffers(), strict=True):
        kept.copy_(new)

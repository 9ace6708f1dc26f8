"""Random numbers of the samples of a batch that several processes share.

The generators of all processes are seeded alike in each iteration. Each process draws the numbers
of the whole batch and takes those of its own samples, so that the training of a batch does not
depend on how many processes share it.
"""

import torch
import torch.distributed
from torch import Tensor


def rand_per_sample(*shape: int, device: torch.device | str) -> Tensor:
    """Uniform numbers in [0, 1) for this process's samples: ``shape``, float32.

    Args:
        shape: (B, ...), B being the samples of this process, equally many in each. Of small things
            only: the numbers of all processes are drawn.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return torch.rand(shape, device=device)
    batch, rest = shape[0], shape[1:]
    whole = torch.rand(torch.distributed.get_world_size() * batch, *rest, device=device)
    first = torch.distributed.get_rank() * batch
    return whole[first : first + batch]

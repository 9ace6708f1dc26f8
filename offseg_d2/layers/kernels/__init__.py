"""Layers as Triton kernels for NVIDIA GPUs: the same results as their PyTorch forms, faster.

Each kernel is an operator of PyTorch, so that it passes through torch.compile and fake tensors;
``*_triton.py`` are the kernels themselves. Importing this package does not import Triton.
"""

from offseg_d2.layers.kernels.carafe import carafe as carafe_kernel
from offseg_d2.layers.kernels.choice import enable_kernels, kernels_apply

__all__ = ["carafe_kernel", "enable_kernels", "kernels_apply"]

"""Layers as Triton kernels for NVIDIA GPUs: the results of their PyTorch forms, in fewer passes.

Each kernel is an operator of PyTorch, so that it passes through torch.compile and fake tensors;
``*_triton.py`` are the kernels themselves. Importing this package does not import Triton.
"""

from offseg_d2.layers.kernels.carafe import carafe as carafe_kernel
from offseg_d2.layers.kernels.choice import enable_kernels, kernels_apply
from offseg_d2.layers.kernels.resized_argmax import resized_argmax as argmax_kernel
from offseg_d2.layers.kernels.resized_cross_entropy import cross_entropy_of_pixels
from offseg_d2.layers.kernels.similarity import neighbour_similarity as similarity_kernel

__all__ = [
    "argmax_kernel",
    "carafe_kernel",
    "cross_entropy_of_pixels",
    "enable_kernels",
    "kernels_apply",
    "similarity_kernel",
]

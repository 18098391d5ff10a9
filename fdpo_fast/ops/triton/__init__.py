"""The operators on GPU tensors: Triton kernels and their launches."""

"""What the kernels are worth: speed, memory and exactness, measured."""

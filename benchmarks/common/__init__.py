"""What the benchmarks share: the device and its memory, a clock, who else takes the cores, tables of results."""

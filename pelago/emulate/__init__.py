"""A wide-area network emulated in user space: for `pelago local`, tests and benchmarks."""

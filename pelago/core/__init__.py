"""What every node decides with: pure, no I/O, no clock, no threads, no tensors."""

"""What the benchmarks start: peers as processes of their own, and the machine's description."""

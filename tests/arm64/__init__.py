"""What tools/arm64.py runs besides the kernels' own tests: the same answer on two architectures."""

"""How fast is a training step, and how much memory does it take? `python -m benchmarks` measures both."""

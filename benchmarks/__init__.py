"""Timings. Both sides of a ratio run interleaved in one process; `python -m benchmarks` runs them all."""

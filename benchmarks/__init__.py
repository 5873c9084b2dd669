"""Measures rdk against what a user would run instead: `python -m benchmarks` starts at __main__, `pytest` at test_speed."""

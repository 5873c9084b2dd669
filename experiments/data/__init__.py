"""Data for the experiments; mazes.py is called by the demo and by the runner."""

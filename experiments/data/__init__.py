"""Data for the experiments: sets.py opens each of them; the demo calls mazes.py, maze_raster.py and atomic.py alone."""

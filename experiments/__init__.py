"""Every table, figure and claim of the paper from one runner: `python -m experiments list`. Start reading at cli.py."""

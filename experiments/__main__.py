"""`python -m experiments`: hands over to cli.main."""

from experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

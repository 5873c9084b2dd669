"""`python -m experiments.demo`: parses the flags, runs the demo and turns every way it can end into an exit code; calls run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 finished, 2 input that does not fit, 130 after Ctrl-C, 143 after SIGTERM."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # PyTorch's profiler measures memory; its own log lines are no news
    try:
        from experiments.demo import options, run, show

        try:
            parsed = options.parse(argv)
            return run.run(parsed, show.make_console())
        except run.Stopped as stopped:
            print(
                f"\nstopped after step {stopped.step} of {parsed.steps}; saved in {parsed.folder()}. "
                f"The same command goes on from there.",
                flush=True,
            )
            return 128 + stopped.number
        except (ValueError, run.DisagreementError) as reason:
            print(reason, file=sys.stderr)
            return 2
    except KeyboardInterrupt:
        print("\nstopped. The same command goes on from the last saved step.", flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())

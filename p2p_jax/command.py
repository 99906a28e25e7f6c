"""How a command ends: exit codes, and what a user reads of an error; needs no library."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from p2p_jax.process import LEFT, Failure
from p2p_jax.words import Problems

BAD_INPUT = 2


def finish(run: Callable[[], int], interrupted: str) -> int:
    """Runs a command and turns whatever ends it into an exit code and a text.

    Args:
      run: the command; returns its exit code.
      interrupted: what to say where it was left by Ctrl-C.

    Returns:
      The command's own; 2 where its input was bad, a `ConfigError` or `DataError`, each problem on
      a line; 130 where it was interrupted; 1 for anything else, with the reason on the last line.
    """
    try:
        return run()
    except Problems as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return BAD_INPUT
    except (Failure, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return LEFT
    except Exception as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1

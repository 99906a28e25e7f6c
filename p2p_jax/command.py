"""How a command ends: exit codes, and what a user reads of an error; needs no library."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from p2p_jax.process import LEFT, Failure
from p2p_jax.words import Problems

BAD_INPUT = 2


def finish(run: Callable[[], int], interrupted: str, name: Callable[[], str] = lambda: "") -> int:
    """Runs a command and turns whatever ends it into an exit code and a text.

    Args:
      run: the command; returns its exit code.
      interrupted: what to say where it was left by Ctrl-C.
      name: of this process, where there are several.

    Returns:
      The command's own; 2 where its input was bad, a `ConfigError` or `DataError`, each problem on
      a line; 130 where it was interrupted; 1 for anything else, with the reason on the last line.
    """

    def tell(text: object) -> None:
        print(f"error: {f'{name()}: ' if name() else ''}{text}", file=sys.stderr)

    try:
        return run()
    except Problems as error:
        for problem in error.problems:
            tell(problem)
        return BAD_INPUT
    except (Failure, OSError) as error:
        tell(error)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return LEFT
    except Exception as error:
        traceback.print_exc()
        tell(f"{type(error).__name__}: {error}")
        return 1

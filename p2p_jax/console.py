"""What a user sees on standard output while a run lasts."""

from __future__ import annotations

import datetime
import math
import sys
import time
from collections.abc import Mapping, Sequence

import rich.console
import rich.live
import rich.text

from p2p_jax.report import number

_REFRESH_SECONDS = 0.1
# A terminal obeys these wherever they come from, a file name included.
_CONTROLS = {c: f"\\x{c:02x}" for c in (*range(9), *range(11, 32), *range(127, 160))}


def _left(seconds: float | None) -> list[str]:
    """The time left in words, where it is known."""
    if seconds is None or not math.isfinite(seconds):
        return []
    return [f"{datetime.timedelta(seconds=max(0, round(seconds)))} left"]


class Console:
    """What a user sees on standard output.

    On a terminal one live line stays at the bottom and all else is printed above it. Anywhere else
    (a file, a pipe, a batch system) each call prints plain lines, never wrapped and never coloured.
    """

    def __init__(self, silent: bool = False) -> None:
        """Begins; `silent` prints nothing, as another process says the same."""
        self._out = rich.console.Console(
            file=sys.stdout,
            # Not left to rich: FORCE_COLOR would put escape codes into log files.
            force_terminal=sys.stdout.isatty(),
            force_jupyter=False,
            markup=False,
            highlight=False,
            emoji=False,
            quiet=silent,
        )
        self._tty = not silent and self._out.is_terminal and not self._out.is_dumb_terminal
        self._live: rich.live.Live | None = None
        self._step = self._total = 0
        self._stats: list[str] = []
        self._end: float | None = None
        self._drawn = 0.0

    def _print(self, text: str, style: str = "") -> None:
        # A file name need not be valid text, nor the terminal able to show it.
        encoding = self._out.encoding
        text = text.translate(_CONTROLS).encode(encoding, "backslashreplace").decode(encoding)
        self._out.print(rich.text.Text(text, style), soft_wrap=not self._tty)

    def header(self, rows: Sequence[tuple[str, str]]) -> None:
        """Prints names and values in two aligned columns: the resolved run, at its start."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self._print(f"{name:<{width}}  {value}")

    def note(self, text: str) -> None:
        """Prints a line."""
        self._print(text)

    def warn(self, text: str) -> None:
        """Prints a line that asks for attention."""
        self._print(f"warning: {text}", "yellow")

    def progress(
        self,
        step: int,
        total: int,
        scalars: Mapping[str, float],
        images_per_sec: float,
        data_wait: float,
        seconds_left: float | None,
    ) -> None:
        """Shows how the run stands: a new live line on a terminal, one more line elsewhere.

        Called before the first step with no `scalars` and NaN, it puts up the bar of a terminal.

        Args:
            step: updates done, of `total`.
            total: updates in the whole run.
            scalars: losses by name; without any, nothing is printed elsewhere than on a terminal.
            images_per_sec: end to end; NaN where it is not known yet.
            data_wait: fraction of the time spent waiting for data, 0 to 1.
            seconds_left: estimate, or None where there is none yet.
        """
        stats = [f"{name.removeprefix('loss/')} {number(v)}" for name, v in scalars.items()]
        if not math.isnan(images_per_sec):
            stats += [f"{number(images_per_sec)} images/s", f"data wait {data_wait:.0%}"]
        if not self._tty:
            if scalars:
                self._print("  ".join([f"step {step}/{total}", *stats, *_left(seconds_left)]))
            return
        self._step, self._total, self._stats = step, total, stats
        self._end = None if seconds_left is None else time.monotonic() + seconds_left
        if self._live is None:
            # No refresh thread: it would compete with the one that feeds the device.
            self._live = rich.live.Live(
                get_renderable=self._line,
                console=self._out,
                auto_refresh=False,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()
            # Hidden, it would stay so after a kill.
            self._out.show_cursor(True)
        self._draw()

    def tick(self, step: int) -> None:
        """Moves the bar on; cheap enough for every dispatch. Elsewhere than on a terminal: nothing.

        Before the first `progress` there is no bar to move.
        """
        self._step = step
        if self._live is not None and time.monotonic() - self._drawn >= _REFRESH_SECONDS:
            self._draw()

    def _draw(self) -> None:
        assert self._live is not None
        self._drawn = time.monotonic()
        self._live.refresh()

    def _line(self) -> rich.text.Text:
        """The live line, made to fit: without its bar, then cut, where the terminal is narrow."""
        left = None if self._end is None else self._end - time.monotonic()
        count = f"{self._step}/{self._total} "
        tail = " " + "  ".join([*self._stats, *_left(left)])
        # One column stays free: some terminals wrap when the last is written.
        width = self._out.width - 1
        room = min(30, width - len(count) - len(tail))
        line = rich.text.Text(count, "bold", no_wrap=True, end="")
        if room >= 5:
            full, rest = ("#", "-") if self._out.options.ascii_only else ("━", "─")
            done = round(room * min(1.0, self._step / max(1, self._total)))
            line.append(full * done, "cyan").append(rest * (room - done), "dim")
        line.append(tail, "not bold")
        line.truncate(max(1, width))
        return line

    def evaluation(
        self,
        step: int,
        split: str,
        count: int,
        metrics: Mapping[str, float],
        baseline: Mapping[str, float],
        baseline_name: str,
        *,
        intervals: Mapping[str, tuple[float, float]] | None = None,
        spread: Mapping[str, float] | None = None,
        real: Mapping[str, float] | None = None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        """Prints the metrics of an evaluation with those of a trivial answer beside them.

        Args:
            step: updates done.
            split: what was evaluated.
            count: number of examples.
            metrics: values by name.
            baseline: the same metrics of the trivial answer; a missing one is shown as ``-``.
            baseline_name: what the trivial answer is.
            intervals: of figures that have one, the two ends that hold 95%.
            spread: of figures, the standard deviation over several seeds.
            real: of figures that judge photos, what real ones have.
            about: of figures that need it, how they were made.
        """
        intervals, spread, real = intervals or {}, spread or {}, real or {}
        self._print(f"evaluation at step {step}: {split}, {count} examples", "bold")
        # Those of single classes share a line.
        names = {key: key.removeprefix("eval/") for key in metrics}
        alone = [key for key, name in names.items() if "/" not in name]
        width = max((len(names[key]) for key in alone), default=0)
        for key in alone:
            beside = [f"({baseline_name}: {number(baseline.get(key))})"]
            if key in real:
                beside = [f"(real photos: {number(real[key])})"]
            if key in intervals:
                beside.append(f"[{', '.join(number(end) for end in intervals[key])}]")
            if key in spread:
                beside.append(f"±{number(spread[key])} over seeds")
            self._print(f"  {names[key]:<{width}}  {number(metrics[key]):<8}  {'  '.join(beside)}")
        groups: dict[str, list[str]] = {}
        for key in (key for key in metrics if key not in alone):
            group, _, single = names[key].partition("/")
            groups.setdefault(group, []).append(f"{single} {number(metrics[key])}")
        for group, texts in groups.items():
            self._print(f"  {group}: {', '.join(texts)}")
        told: dict[str, list[str]] = {}
        for key, text in (about or {}).items():
            if key in metrics:
                told.setdefault(text, []).append(names[key])
        for text, of in told.items():
            self._print(f"  {', '.join(of)}: {text}")

    def done(self, rows: Sequence[tuple[str, str]]) -> None:
        """Takes the live line away and prints the closing summary, aligned like the header."""
        self.close()
        self.header(rows)

    def close(self) -> None:
        """Takes the live line away and gives the terminal back; may be called more than once."""
        if self._live is not None:
            self._live.stop()
            self._live = None

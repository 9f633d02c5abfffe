"""What a running fit tells, and a rich progress bar that shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Progress", "ProgressEvent", "bar"]


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """How far a fit has come.

    Args:
        stage: ``compiling``, ``fitting``, ``finishing`` or ``sampling``.
        done: Steps or draws done.
        total: Steps or draws in all.
        message: Loss, divergences: what is worth a look.
    """

    stage: str
    done: int
    total: int
    message: str = ""


Progress: TypeAlias = Callable[[ProgressEvent], None]


@contextmanager
def bar(progress: bool | Progress | None) -> Iterator[Progress]:
    """Yield a function that takes progress events.

    Args:
        progress: ``True`` shows a bar on standard error, a function is passed on, ``False`` or ``None`` is silent.

    Yields:
        The function.
    """
    if not progress:
        yield lambda _: None
        return
    if progress is not True:
        yield progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=False) as shown:
        task = shown.add_task("starting", total=None, message="", speed="")
        started: dict[str, float] = {}

        def tell(event: ProgressEvent) -> None:
            first = started.setdefault(event.stage, time.perf_counter())
            passed = time.perf_counter() - first
            speed = f"{event.done / passed:,.0f}/s" if event.done and passed > 0.5 else ""
            total = event.total or None
            shown.update(
                task, description=event.stage, completed=event.done, total=total, message=event.message, speed=speed
            )

        yield tell

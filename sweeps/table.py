"""The table of runs that `status` prints: one line each, and why where it failed."""

import textwrap
from collections.abc import Iterator, Sequence

from ..util import clock, counted, shown_path
from .status import FAILED, STATES, State

COLUMNS = ("run", "state", "frames", "done", "score", "left")
GAP = "  "
LEAST_NAME, MOST_REASON = 12, 20  # letters
INDENT = " " * 4


def table(found: Sequence[State], width: int | None) -> list[str]:
    """The table's lines, with the number of runs in each state as the last one.

    Args:
        found: the runs.
        width: in columns, of a terminal; None: lines are as long as they need to be.
    """
    rows = [COLUMNS, *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        others = sum(widths[1:]) + len(GAP) * (len(widths) - 1)
        widths[0] = max(LEAST_NAME, min(widths[0], width - others))
    lines = [_line(COLUMNS, widths)]
    for state, row in zip(found, rows[1:], strict=True):
        lines += [_line(row, widths), *_reason(state, width)]
    counts = [sum(state.state == name for state in found) for name in STATES]
    shown = [f"{n} {name}" for n, name in zip(counts, STATES, strict=True) if n]
    return [*lines, f"{counted(len(found), 'run')}: {', '.join(shown)}"]


def _cells(state: State) -> tuple[str, ...]:
    limit = state.run.frames
    word = state.state
    if state.why and state.state != FAILED:
        word += f" ({state.why[:MOST_REASON]})"
    return (
        state.run.name,
        word,
        f"{state.frames:,}",
        f"{min(1.0, state.frames / limit):.0%}" if limit else "-",
        "-" if state.score is None else f"{state.score:,.1f}",
        clock(state.seconds_left),
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, state, *numbers = cells
    if len(name) > widths[0]:  # its end tells runs apart
        name = f"...{name[3 - widths[0] :]}"
    shown = [name.ljust(widths[0]), state.ljust(widths[1])]
    shown += [text.rjust(w) for text, w in zip(numbers, widths[2:], strict=True)]
    return GAP.join(shown).rstrip()


def _reason(state: State, width: int | None) -> Iterator[str]:
    """Why a run failed, and where more is said."""
    if state.state != FAILED:
        return
    parts = [state.why] if state.why else []
    if state.log is not None:
        parts.append(f"see {shown_path(state.log)}")
    text = "; ".join(parts)
    if width is None:
        yield INDENT + text
    else:
        yield from textwrap.wrap(
            text,
            width,
            initial_indent=INDENT,
            subsequent_indent=INDENT,
            break_on_hyphens=False,
        )

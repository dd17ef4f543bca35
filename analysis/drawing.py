"""How the project's figures and tables look, and the bytes of their files.

Matplotlib is imported only to draw, and never pyplot: there is no global state.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; in grey print the
# dashes do it. Their yellow is left out: it cannot be seen on white.
VERMILION, BLUE, BLACK, GREEN = "#D55E00", "#0072B2", "#000000", "#009E73"
ORANGE, SKY, PURPLE = "#E69F00", "#56B4E9", "#CC79A7"
SOLID = "solid"
DASHED = (0, (4, 1.5))
DOTTED = (0, (1, 1.2))
DASH_DOT = (0, (7, 1.5, 1.5, 1.5))

PANELS_PER_ROW = 4
LOG_SCALE_FROM = 50.0  # ratio of the largest to the smallest value
KINDS = ("png", "pdf")  # what is written of each figure unless told otherwise


def finish_axes(axes: "Axes") -> None:
    """A faint grid behind the data, and no frame above and to the right of it."""
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def wants_log_scale(values: np.ndarray) -> bool:
    """Whether they are all positive and far apart; NaN counts as not there."""
    known = values[np.isfinite(values)]
    return known.size > 0 and known.max() > LOG_SCALE_FROM * known.min() > 0


def origin(command: str, version: str) -> str:
    """What made a figure: the command, the version and the commit."""
    from ..storage.record import program_commit

    commit = program_commit()
    return f"{command}; steve {version}" + (f", commit {commit}" if commit else "")


def rendered(figure: "Figure", kind: str, about: str = "") -> bytes:
    """The file of a figure, png, pdf or svg; the same figure gives the same bytes.

    Args:
        figure: what is to be written.
        kind: of the file.
        about: text for the file's metadata (`origin`).
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Description": about},
        "pdf": {"CreationDate": None, "Subject": about},
        "svg": {"Date": None, "Description": about},
    }
    # 42: fonts as TrueType. Many a conference refuses matplotlib's default, Type 3.
    settings: dict[Any, Any] = {"pdf.fonttype": 42, "svg.hashsalt": "steve"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata[kind])
    return buffer.getvalue()


def csv_bytes(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """A csv with a header; NumPy's floats get six digits, all else is in full."""

    def cell(value: object) -> str:
        return f"{value:.6g}" if isinstance(value, np.floating) else str(value)

    lines = [",".join(columns), *(",".join(map(cell, row)) for row in rows)]
    return ("\n".join(lines) + "\n").encode()


def significant(value: float) -> str:
    """A score of any size: one decimal, but never fewer than three digits."""
    if value == 0 or 10 <= abs(value) < 1e9 or not np.isfinite(value):
        return f"{value:,.1f}"
    return f"{value:.3g}"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, each column as wide as its longest, set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )

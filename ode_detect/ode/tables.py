"""Plain-text tables for the reports of this package."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,), total: Sequence[str] = ()
) -> str:
    """Return aligned columns under a head, with a line below it.

    Args:
        head: the names of the columns.
        rows: a cell for each column.
        left: the columns that are aligned to the left; the others are to the right.
        total: a last row, with a line above it; empty for none.
    """
    widths = [max(map(len, cells)) for cells in zip(head, *rows, *([total] if total else []), strict=True)]
    rule = ["-" * width for width in widths]
    lines = [head, rule, *rows, *([rule, total] if total else [])]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )

"""Results as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from benchmarks.measure import Result


def render(result: Result) -> str:
    """The figures, then the ratios with their targets."""
    figures = [["case", "contender", "role", "quantity", "median", "least", "greatest", "unit"]]
    figures += [
        [
            figure.case,
            figure.contender,
            figure.role,
            figure.quantity,
            _number(figure.median),
            _number(min(figure.samples)),
            _number(max(figure.samples)),
            figure.unit,
        ]
        for figure in result.figures
    ]
    ratios = [["case", "quantity", "of", "to", "ratio", "least", "greatest", "target", "met"]]
    ratios += [
        [
            ratio.case,
            ratio.quantity,
            ratio.of,
            ratio.to,
            f"{ratio.median:.2f}",
            f"{min(ratio.samples):.2f}",
            f"{max(ratio.samples):.2f}",
            ratio.target,
            {True: "yes", False: "no", None: ""}[ratio.met],
        ]
        for ratio in result.ratios
    ]
    settings = result.about.items()
    about = [", ".join(f"{k} {_plain(v)}" for k, v in settings if not isinstance(v, Mapping))]
    for title, value in result.about.items():
        if isinstance(value, Mapping) and value:
            about += [f"{title}:", *(f"  {name}: {_plain(said)}" for name, said in value.items())]
    head = [f"{result.name}: {result.question}", "\n".join(about)]
    parts = [*head, _aligned(figures), _aligned(ratios)]
    return "\n\n".join(parts)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = {name for name in ("median", "least", "greatest", "ratio") if name in rows[0]}
    lines = []
    for row in rows:
        cells: Iterable[str] = (
            cell.rjust(width) if title in numeric else cell.ljust(width)
            for title, cell, width in zip(rows[0], row, widths, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)

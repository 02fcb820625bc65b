"""`curves.png`: the learning curves of a run in one picture."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from trainer.base.config import JsonObject
from trainer.reporting.drawing import load_matplotlib
from trainer.reporting.glyphs import missing_glyphs_allowed
from trainer.storage.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinguishable under all common kinds of colour blindness
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
_FEW_POINTS = 60
_MOST_POINTS = 20_000  # of a curve; the picture is about a thousand pixels wide


@dataclass
class _Curve:
    """The points of a curve. Beyond `_MOST_POINTS` only every second one is kept, then every fourth, and so on."""

    tag: str = ""
    label: str = ""
    colour: str = ""
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    every: int = 1
    skipped: int = 0

    def add(self, step: int, value: float) -> None:
        self.skipped += 1
        if self.skipped < self.every:
            return
        self.skipped = 0
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) > _MOST_POINTS:
            self.every *= 2
            self.steps, self.values = self.steps[1::2], self.values[1::2]


def draw_curves(
    metrics: Iterable[JsonObject],
    path: Path,
    title: str,
    best_step: int | None = None,
    best_value: float | None = None,
    monitor: str | None = None,
) -> None:
    """Write the figure of `curves_figure` as a PNG; nothing without any data."""
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = curves_figure(metrics, title, best_step, best_value, monitor)
    if figure is None:
        return
    picture = BytesIO()
    with missing_glyphs_allowed():
        # draws once; `savefig` would draw twice, the first time for the layout alone
        FigureCanvasAgg(figure).print_png(picture)
    write_atomic(path, picture.getvalue())


def curves_figure(
    metrics: Iterable[JsonObject],
    title: str,
    best_step: int | None = None,
    best_value: float | None = None,
    monitor: str | None = None,
) -> "Figure | None":
    """Draw loss, accuracy and learning rate over steps (bottom axis) and epochs (top axis); None without any data.

    `metrics` are the records of `metrics.jsonl`, which may be too many to be kept in memory. Panels without data are
    omitted, and values that are not finite are gaps. A monitored metric of another name gets its own panel. A dashed
    line marks the best step, and a dot `best_value` in the panel of `monitor`.
    """
    load_matplotlib()
    from trainer.reporting.shown_figure import ShownFigure

    panels, epochs = _panels(metrics, monitor)
    if not panels:
        return None
    figure = ShownFigure(figsize=(9.0, 1.2 + 2.2 * len(panels)), dpi=120, layout="constrained")
    figure.suptitle(_one_line(title), fontsize=11, parse_math=False)
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    last_step = max(step for curves in panels.values() for curve in curves for step in curve.steps)
    rows[0].set_xlim(0, max(last_step, 1))
    for axes, (name, curves) in zip(rows, panels.items(), strict=True):
        _draw_panel(axes, name, curves)
        if best_step is not None:
            monitored = monitor in [curve.tag for curve in curves]
            _mark_best(axes, best_step, best_value if monitored else None)
        if axes.get_legend_handles_labels()[1] != [name]:
            axes.legend(loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False, fontsize=9)
    rows[-1].set_xlabel("step")
    _add_epochs(rows[0], epochs)
    return figure


def _one_line(title: str) -> str:
    title = " ".join(title.split())
    return title if len(title) <= 110 else f"{title[:107]}..."


def _panels(metrics: Iterable[JsonObject], monitor: str | None) -> tuple[dict[str, list[_Curve]], _Curve]:
    """Return the curves of each panel, and the epochs over steps."""
    names = dict.fromkeys(["loss", "accuracy", *([monitor.rpartition("/")[2]] if monitor else [])])
    wanted = {name: [(f"train/{name}", "training", _BLUE), (f"val/{name}", "validation", _ORANGE)] for name in names}
    wanted["learning rate"] = [("lr", "learning rate", _GREEN)]
    panels = {name: [_Curve(*curve) for curve in curves] for name, curves in wanted.items()}
    all_curves, epochs = [curve for curves in panels.values() for curve in curves], _Curve()
    for record in metrics:
        for curve in all_curves:
            if curve.tag in record:
                value = math.nan if record[curve.tag] is None else float(record[curve.tag])
                curve.add(record["step"], value if math.isfinite(value) else math.nan)
        if "epoch" in record:
            epochs.add(record["step"], float(record["epoch"]))
    panels = {name: [curve for curve in curves if curve.steps] for name, curves in panels.items()}
    return {name: curves for name, curves in panels.items() if curves}, epochs


def _draw_panel(axes: "Axes", name: str, curves: Sequence[_Curve]) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    for curve in curves:
        # validation is drawn over the noisier training curve, with dots if a line could be too short to see
        marker = "o" if len(curve.steps) <= _FEW_POINTS else None
        order = 3 if curve.tag.startswith("val/") else 2
        axes.plot(
            curve.steps,
            curve.values,
            color=curve.colour,
            label=curve.label,
            linewidth=1.3,
            marker=marker,
            markersize=3,
            zorder=order,
            clip_on=False,
        )
    if _is_logarithmic([value for curve in curves for value in curve.values]):
        axes.set_yscale("log", nonpositive="mask")
    axes.set_ylabel(name)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _is_logarithmic(values: Sequence[float]) -> bool:
    """Whether to use a logarithmic axis: on a linear one, half of the points would be in the lowest tenth."""
    finite = [value for value in values if math.isfinite(value)]
    positive = [value for value in finite if value > 0]
    return bool(positive) and min(finite) >= 0 and median(positive) < max(positive) / 10


def _mark_best(axes: "Axes", step: int, value: float | None) -> None:
    axes.axvline(step, color=_GREY, linewidth=1.0, linestyle="--", zorder=1, clip_on=False)
    if value is not None and math.isfinite(value):
        label = f"best: {value:.4g}\nat step {step:,}"
        axes.plot(
            [step],
            [value],
            "o",
            label=label,
            zorder=4,
            clip_on=False,
            color="none",
            markeredgecolor="black",
            markersize=8,
        )


def _add_epochs(axes: "Axes", curve: _Curve) -> None:
    """Add an axis in epochs, which are not proportional to steps if the batch size changes."""
    import numpy as np

    pairs = {0: 0.0} | dict(zip(curve.steps, curve.values, strict=True))
    steps, epochs = zip(*sorted(pairs.items()), strict=True)
    if epochs[-1] > epochs[0]:
        functions = (lambda x: np.interp(x, steps, epochs), lambda x: np.interp(x, epochs, steps))
        top = axes.secondary_xaxis("top", functions=functions)
        top.set_xlabel("epoch")

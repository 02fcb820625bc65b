"""A matplotlib figure that a notebook shows as a picture. Imported after `load_matplotlib`."""

from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainer.reporting.glyphs import missing_glyphs_allowed


class ShownFigure(Figure):
    """A figure without pyplot, which would keep all of its figures; IPython only knows how to show pyplot's."""

    def _repr_png_(self) -> bytes:
        picture = BytesIO()
        with missing_glyphs_allowed():
            FigureCanvasAgg(self).print_png(picture)
        return picture.getvalue()

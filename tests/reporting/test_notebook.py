"""The display in a notebook, whose IPython is a small stand-in: which outputs a cell has in the end, and before."""

import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trainer import assemble, compose, fit
from trainer.reporting.notebook import in_notebook
from trainer.reporting.terminal import Terminal


class ZMQInteractiveShell:
    """The shell of Jupyter."""


class Shell(ZMQInteractiveShell):
    """The shell of Colab."""


class TerminalInteractiveShell:
    """The shell of `ipython` on a terminal."""


class Cell:
    """The outputs of a cell, and all that the first one has shown."""

    def __init__(self) -> None:
        self.outputs: list[Mapping[str, str]] = []
        self.shown: list[str] = []

    def display(self, data: Mapping[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw and display_id
        self.outputs.append(data)
        number = len(self.outputs) - 1

        def update(data: Mapping[str, str], *, raw: bool) -> None:
            assert raw
            self.outputs[number] = data
            self.shown.append(data["text/plain"])

        self.shown.append(data["text/plain"])
        return types.SimpleNamespace(update=update)


def ipython(monkeypatch: pytest.MonkeyPatch, shell: object) -> Cell:
    cell = Cell()
    package, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.__dict__.update(get_ipython=lambda: shell, display=display, version_info=(9, 0))
    display.__dict__.update(display=cell.display)
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return cell


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("TERM", "dumb")
    return ipython(monkeypatch, ZMQInteractiveShell())


@pytest.mark.parametrize(
    ("shell", "expected"),
    [(ZMQInteractiveShell(), True), (Shell(), True), (TerminalInteractiveShell(), False), (None, False)],
)
def test_what_is_a_notebook(shell: object, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_notebook()
    ipython(monkeypatch, shell)
    assert in_notebook() == expected
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))  # while it is imported
    assert not in_notebook()


def test_a_cell_has_one_output_that_is_updated(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    display = Terminal(40, lambda step: step / 10, "val/loss", "min")
    display._next_refresh = 0.0
    display.header({"model": "mlp <b>", "data": "digits"})
    display.tick(1, 2.0, 1000.0)
    display._next_refresh = 0.0
    display.row(10, 1.0, {"train/loss": 1.5, "val/loss": 1.25}, best=True)
    display.message("warning: [red]slow[/red] & more")
    display.row(20, 2.0, {"train/loss": 0.5, "val/loss": 1.5}, best=False)
    display.tick(21, 0.5)
    display.finish(["completed after 40 steps"])
    display.message("after the end")
    display.close()
    assert (len(cell.outputs), capsys.readouterr().out) == (1, "")
    assert any("1/40" in text and "1.0k samples/s" in text and "2.0000" in text for text in cell.shown)
    assert not any(
        "1.2500" in text and "slow" in text and text.index("1.2500") < text.index("slow") for text in cell.shown
    )
    text, html = cell.outputs[0]["text/plain"], cell.outputs[0]["text/html"]
    lines = [line.rstrip() for line in text.splitlines() if line.strip(" ─")]
    assert lines[:3] == ["model  mlp <b>", "data   digits", "warning: [red]slow[/red] & more"]
    assert [line.split() for line in lines[5:]] == [
        ["1.00", "1.5000", "1.2500", "★"], ["2.00", "0.5000", "1.5000"],
        ["completed", "after", "40", "steps"], ["after", "the", "end"],
    ]  # fmt: skip
    assert "samples/s" not in text and "\x1b" not in text + html
    assert "mlp &lt;b&gt;" in html and "slow[/red] &amp; more" in html
    plain = re.sub(r"<[^>]+>", "", html).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert plain.split() == text.split()


def test_a_run_in_a_notebook(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["model=linear", "steps=3", "schedule=constant", "threads=1", "every.log=1step"]
    for number in (1, 2):
        fit(assemble(compose(words), f"run{number}"))
        assert (len(cell.outputs), capsys.readouterr().out) == (number, "")
    assert "run" in cell.shown[0] and "completed after 3 steps" in cell.outputs[1]["text/plain"]

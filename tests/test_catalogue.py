"""docs/catalogue.md is current, and an option without a proof is refused."""

from pathlib import Path

import pytest

from tests import catalogue
from tests.catalogue import Entry, Proof


def test_the_catalogue_is_current() -> None:
    """Fails for an option that no test declares to prove, and for a page that is older than what it is made of."""
    assert catalogue.PAGE.read_text(encoding="utf-8") == catalogue.catalogue(), "run python -m tests.catalogue"


def test_what_is_missing_is_told() -> None:
    ours = Entry("optimizer=new", "New", "trainer.optimizers.new.New", {}, "w <- w - lr g.")
    librarys = Entry("optimizer=adam", "Adam", "torch.optim.Adam", {})
    nothing = Entry("averaging=none", "No averaging", "", {})
    proved = [Proof("optimizer=adam", "a table", "exact", "tests/test_x.py::test_x", False)]
    unknown = Proof("optimizer=adm", "a table", "exact", "tests/test_x.py::test_x", False)
    rule = "optimizer=adam has no rule: add a line '# rule: ...' below the first line of its file"
    assert catalogue.problems([librarys, nothing], proved) == [rule]
    (told,) = catalogue.problems([ours, nothing], [])
    assert told.startswith('optimizer=new has no proof: add @pytest.mark.proves("optimizer=new", reference="')
    assert (
        catalogue.problems([ours], [unknown])[0]
        == "tests/test_x.py::test_x: proves 'optimizer=adm', which is no option"
    )


def test_labels_and_docstrings(tmp_path: Path) -> None:
    file = tmp_path / "sgd.yaml"
    file.write_text("# SGD (Robbins & Monro 1951)\n# rule: w <- w\n#   - lr g\n# slide: eps\n_target_: x\n# show: no\n")
    assert catalogue.header(file) == ("SGD (Robbins & Monro 1951)", {"rule": "w <- w - lr g", "slide": "eps"})
    text = catalogue.docstring_of("trainer.optimizers.momentum.momentum")
    assert text.startswith(
        "Return torch's SGD for the form `heavy_ball`, and `Momentum` for the other two.\n\nMomentum: "
    )
    assert "Raises" not in text
    entry = Entry("optimizer=x", "X (Loshchilov & Hutter 2019; Bell and Sejnowski 1997)", "x", {},
                  "w <- w (He et al. 2015; CS7150).\n\nSlide: UVic PHYS 555 prints\nanother sign.")  # fmt: skip
    assert entry.source == "UVic PHYS 555; CS7150; Loshchilov & Hutter 2019; Bell & Sejnowski 1997; He et al. 2015"
    assert (entry.rule, entry.slide) == ("w <- w (He et al. 2015; CS7150).", "UVic PHYS 555 prints another sign.")


def test_a_declaration_names_reference_and_tolerance(tmp_path: Path) -> None:
    test = tmp_path / "tests/test_x.py"
    test.parent.mkdir()
    body = '@pytest.mark.slow\n@pytest.mark.proves("optimizer=a", "optimizer=b", {})\ndef test_x(): ...\n'
    test.write_text(body.format('reference="torch", tolerance="exact"'))
    name = "tests/test_x.py::test_x"
    expected = [Proof(f"optimizer={option}", "torch", "exact", name, True) for option in "ab"]
    assert catalogue.proofs(test.parent) == expected
    other = tmp_path / "tests/test_y.py"
    other.write_text(body.format('reference="torch"').replace("test_x", "test_y"))
    with pytest.raises(ValueError, match="needs reference= and tolerance=, not reference"):
        catalogue.proofs(test.parent)


@pytest.mark.slow
def test_the_commands_that_show_an_option_can_be_composed(tmp_path: Path) -> None:
    from trainer import compose

    for entry in catalogue.entries():
        command = entry.labels.get("show", f"train {entry.name}").replace("PHOTOGRAPHS", str(tmp_path))
        if "=" in entry.name:
            compose([word for word in command.split()[1:] if "=" in word and not word.startswith("--")])

"""A few lines of YAML that stand for billions of values are refused before anything is made of them."""

import re
import textwrap
from pathlib import Path

import pytest

from trainer.base.errors import ConfigurationError, DataError
from trainer.configuration.compose import compose
from trainer.storage.records import read_yaml


def chain(form: str, count: int = 12, times: int = 10) -> str:
    """Lines of which each repeats the one before it: `form` with {name} and {items}."""
    return "".join(
        form.format(name=f"k{n}", items=", ".join([f"*k{n - 1}" if "&" in form else f"${{.k{n - 1}}}"] * times)) + "\n"
        for n in range(1, count)
    )


ALIASES = {
    "lists": "k0: &k0 [1, 2]\n" + chain("{name}: &{name} [{items}]"),
    "mappings": "k0: &k0 {a: 1}\n" + chain("{name}: &{name} {{a: [{items}], b: *k0}}"),
    "merge keys": "k0: &k0 {a: 1}\n" + chain("{name}: &{name} {{<<: [{items}]}}"),
    "keys": "k0: &k0 [1]\n" + "".join(f"k{n}: &k{n} {{? *k{n - 1} : *k{n - 1}}}\n" for n in range(1, 30)),
    "a ring": "k0: &k0\n  a: *k0\n",
    "a longer ring": "k0: &k0 [{a: [*k0]}]\n",
}  # fmt: skip
DEEP = {
    "lists": "k0: " + "[" * 400 + "]" * 400 + "\n",
    "mappings": "k0: " + "{a: " * 400 + "1" + "}" * 400 + "\n",
    "without an end": "k0: " + "[" * 2000 + "\n",
    "blocks": "".join(f"{' ' * n}a:\n" for n in range(500)),
    "dashes": "- " * 400 + "1\n",
    "of aliases": "k0: &k0 1\n" + "".join(f"k{n}: &k{n} [*k{n - 1}]\n" for n in range(1, 100)),
}  # fmt: skip
COUNT = range(1, 30)
INTERPOLATIONS = {
    "text": "k0: aaaa\n" + "".join(f"k{n}: ${{.k{n - 1}}}${{.k{n - 1}}}\n" for n in COUNT),
    "lists": "k0: [1]\n" + "".join(f"k{n}: ['${{..k{n - 1}}}', '${{..k{n - 1}}}']\n" for n in COUNT),
    "mappings": "k0: {a: 1}\n" + "".join(f"k{n}: {{a: '${{..k{n - 1}}}', b: '${{..k{n - 1}}}'}}\n" for n in COUNT),
    "a ring": "k0: ${.k1}\nk1: ${.k0}\n",
}  # fmt: skip


def options(folder: Path, text: str) -> Path:
    (folder / "mine/model").mkdir(parents=True)
    file = folder / "mine/model/bomb.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("text", [*ALIASES.values(), *DEEP.values()], ids=[*ALIASES, *(f"deep {k}" for k in DEEP)])
def test_aliases_and_nesting_are_limited(tmp_path: Path, text: str) -> None:
    file = options(tmp_path, text)
    with pytest.raises(ConfigurationError, match=rf"^{file}, line \d+: (its aliases|an alias|it is nested)") as caught:
        compose(["model=bomb"], config_dir=tmp_path / "mine")
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"bomb.yaml is damaged: (it is nested|it contains an alias)") as damaged:
        read_yaml(file)
    assert "\n" not in str(damaged.value)


@pytest.mark.parametrize(
    ("where", "text"), [*(("model", text) for text in INTERPOLATIONS.values()), ("hydra", INTERPOLATIONS["text"])]
)
def test_interpolations_are_limited(tmp_path: Path, where: str, text: str) -> None:
    options(tmp_path, text)
    words = ["model=bomb"]
    if where == "hydra":
        (tmp_path / "mine/experiment").mkdir()
        axes = re.sub(r"\$\{\.+", "${hydra.sweeper.params.", textwrap.indent(text, "      "))
        head = "# @package _global_\nhydra:\n  sweeper:\n    params:\n"
        (tmp_path / "mine/experiment/bomb.yaml").write_text(head + axes)
        words = ["experiment=bomb"]
    with pytest.raises(ConfigurationError, match=r"interpolations|recursive|Recursive|itself") as caught:
        compose(words, config_dir=tmp_path / "mine")
    assert all("\n" not in problem for problem in caught.value.problems)


def test_aliases_are_allowed_in_a_file_of_options(tmp_path: Path) -> None:
    options(
        tmp_path,
        "_target_: trainer.models.mlp.mlp\nhidden: &sizes [8, 8]\nextra: &more {a: 1}\nother: {<<: *more, b: *sizes}\n",
    )
    composed = compose(["model=bomb"], config_dir=tmp_path / "mine")
    assert composed["model"] == {
        "_target_": "trainer.models.mlp.mlp",
        "hidden": [8, 8],
        "extra": {"a": 1},
        "other": {"a": 1, "b": [8, 8]},
    }

"""What a message advises works, typed as it stands."""

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tests.command_line.conftest import SMALL, Train
from tests.data.images import jpeg
from trainer.base.errors import ConfigurationError, DataError, OutOfMemory
from trainer.base.improvement import direction
from trainer.configuration import compose
from trainer.configuration.few_samples import few_samples
from trainer.configuration.resolve import resolve
from trainer.hydra_entry.preflight import check_parts
from trainer.planning.remarks import model_rows
from trainer.planning.sections import meta_model
from trainer.training.step import refuse_or_halve

PACKAGE = Path(__file__).parents[2] / "trainer"
HOLE = "\0"  # in place of what an f-string inserts

# --- the rule by which advice is found -----------------------------------------------------------------------

COMMAND = re.compile(r"\btrain (?:-m|--help|(?:resume|repeat|plan|evaluate|help)\b)[^;()]*")
FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*(?: [A-Z]+\b)?")
OVERRIDE = re.compile(
    r"(?<![\w.\]}:/'\"])(?:[a-z_]+\.)*[a-z_]+=[\w\[.\0'/-][^\s;()?\"]*|\"[a-z_.]+=[^\"]*\"|'[a-z_.]+=[^']*'"
)


def advised(text: str) -> list[str]:
    """Command lines, flags and overrides in a message after its subject, which is what was typed."""
    if "is quoted: " in text:
        return [text.partition("is quoted: ")[2]]
    subject, colon, rest = text.partition(": ")
    rest = rest if colon and re.search(r"[=\0]|^-", subject) else text
    commands = [found.strip().rstrip(",") for found in COMMAND.findall(rest)]
    rest = COMMAND.sub("", rest)
    overrides = [found.rstrip(",.'") if found[0] not in "'\"" else found for found in OVERRIDE.findall(rest)]
    return [*commands, *FLAG.findall(rest), *overrides]


_VERBS = "".join(f"(?<!{verb} )" for verb in ("set", "leave", "use", "choose", "only have", "mean", "^;"))
STATED = re.compile(rf"(?<![a-z_.]){_VERBS}[a-z_.]+=\0")


def templates() -> Iterator[str]:
    """Every text of the source that gives advice."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name in ("completion.py", "help.py"):  # pages, not messages
            continue
        tree = ast.parse(path.read_text())
        skipped: set[int] = set()
        for node in ast.walk(tree):  # from the outside inwards
            if isinstance(node, ast.JoinedStr):
                skipped |= {id(value) for value in node.values}
            elif isinstance(node, ast.Expr):
                skipped.add(id(node.value))  # documentation
            text = None if id(node) in skipped else _text(node)
            if text is not None and " " in text and advised(STATED.sub("", text)):
                yield text


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else HOLE for v in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


KEYS = ("precision", "early_stopping.monitor")


# --- overrides ------------------------------------------------------------------------------------------------

# what is typed, and a part of the message. Each of the overrides that the message advises is typed in place of the
# one with its key, or added
VALUES = [
    (["+augmentation._target_=trainer.augmentation.Pipeline"], "choose augmentation=none"),
    (["initializer=xavier_normal", "init_from=RUN", "model=linear"], "leave initializer=default"),
    (["data=blobs", "model=linear", "augmentation=flip_crop"], "use augmentation=none"),
    (["loss=kmeans", "model=linear"], "choose model=centroids"),
    (["checkpoint_activations=true"], "modules of several layers"),
    (["data=blobs"], "has features, which model=mlp and model=linear take"),
    (["optimizer=adam", "regularizer=l2", "optimizer.weight_decay=0.1"], "choose regularizer=none"),
    (["~early_stopping"], "early_stopping=null turns it off"),
    (["optimizer=lbfgs", "schedule=cosine"], "so it can only have schedule="),
    (["batch_size=4"], " avoids this"),
    (["tags=a,b"], "several values are a sweep, which needs -m"),
    (["name=a,b"], "several values are a sweep, which needs -m"),
    (["tags=[\xe9,b]"], "is quoted: "),
    (["name=it's"], "is quoted: "),
    (['name=\xe9"$'], "is quoted: "),
    (["a b=0.1"], "an override is key=value, such as optimizer.lr=0.1"),
    (["parallelism=ddp", "micro_batch=auto", "model=linear"], "needs parallelism=single"),
    (["parallelism=ddp", "optimizer=newton", "model=mlp", "model.norm=batch"], "or parallelism=single"),
    (["parallelism=downpour", "micro_batch=auto", "model=linear"], "needs parallelism=single"),
    (["parallelism=pipeline", "compile=true", "parallelism.micro_batches=1"], "leave compile=false"),
    (["data=image_folder", "data.root=FOLDER", "batch_size=2"], "did you mean data.root="),
    (["data=image_folder", "data.root=FOLDER/inner", "data.size=8", "model=linear"], "batch_size=full takes all"),
    (["data=mnist", "data.root=FOLDER", "data.download=false"], "data.download=true would download it"),
    (["optimizer.lrr=0.1"], "Did you mean 'optimizer.lr'?"),
    (["lr=0.1"], "Did you mean 'optimizer.lr'?"),
    (["optimiser=sgd"], "Did you mean 'optimizer'?"),
    (["optimizer=sdg"], "Did you mean 'optimizer=sgd'?"),
    (["model.name=resnet18"], "options with this key: "),
    (["precision=fp17"], "Did you mean fp16?"),
    (["early_stopping.monitor=val/acuracy"], "Did you mean 'val/accuracy'?"),
]


@pytest.fixture
def places(folder: Path, trained: Path) -> dict[str, str]:
    for part in (f"{split}/{name}" for split in ("train", "val", "test") for name in "ab"):
        (folder / "photographs/inner" / part).mkdir(parents=True)
        (folder / "photographs/inner" / part / "1.jpg").write_bytes(jpeg())
    return {"RUN": str(trained), "FOLDER": "photographs"}


def problems(words: list[str]) -> list[str]:
    try:
        check_parts(compose.compose(words))
    except (ConfigurationError, DataError) as error:
        return str(error).splitlines()
    return []


@pytest.mark.slow
@pytest.mark.parametrize(("words", "part"), VALUES)
def test_an_advised_override_works(words: list[str], part: str, places: dict[str, str]) -> None:
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    (found,) = (problem for problem in problems(words) if part in problem)
    advice = [shlex.split(word)[0] for word in advised(found)]
    names = re.findall(r"[Dd]id you mean '?([^'?]+)'?\?", found) if not advice else []
    left = {item: problems(typed(words, item)) for item in (*advice, *names) if item not in (*words, "key=value")}
    assert left, found
    assert not [problem for again in left.values() for problem in again if part in problem], left
    is_choice = "several values" in found  # a list or a text: the key takes one of them
    assert (any if is_choice else all)(again == [] for again in left.values()), left


def typed(words: list[str], item: str) -> list[str]:
    """The words with an advised override, or with a name in place of the one that does not exist."""
    if item == "-m":
        return [word.partition(",")[0] for word in words]  # a trial
    key = item.partition("=")[0]
    if "=" not in item:  # a name: of a key, or of a value
        (wrong,) = words
        old, _, value = wrong.partition("=")
        return [f"{old}={item}"] if old in KEYS else [f"{item}={value}"]
    if words == ["model.name=resnet18"]:
        return [item, *words]
    others = (
        word for word in words if not word.lstrip("+~").startswith((f"{key}=", f"{key}.", "early_stopping", "a b"))
    )
    return [*others, item]


# --- command lines and flags ----------------------------------------------------------------------------------


def only(lines: list[str], part: str) -> str:
    """The one message with this part."""
    (found,) = [line for line in lines if part in line]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "part", "again"),
    [
        (["plam"], "see train --help", ["--help"]),
        (["--cfg", "nosuch"], "see train --help", ["--help"]),
        (["--resolve"], "requires --cfg job", ["--resolve", "--cfg", "job"]),
        (
            ["--config-path", "cfg", "--cfg", "job"],
            "--config-dir adds a folder",
            ["--config-dir", "cfg", "--cfg", "job"],
        ),
        (["--experimental-rerun", "x"], "train repeat RUN", ["repeat", "run", "steps=1"]),
        (["plan", "-m", "--show", "seed=1,2"], "remove --multirun", ["plan", "--show", "seed=1"]),
        (["plan", "--show=x.png"], "only --show without a name overwrites", ["plan", "--show"]),
        (
            ["--config-dir", "cfg", "-cn", "own"],
            "one with --config-dir FOLDER",
            ["--config-dir", "more", "--cfg", "job"],
        ),
        (["plan", "model._target_=numbers.Number"], "--trust numbers", ["--trust", "numbers", "--cfg", "job"]),
        (
            ["evaluate", "run", "tta.crop=0.5"],
            "requires tta=ten_crop",
            ["evaluate", "run", "tta.crop=0.5", "tta=ten_crop"],
        ),
        (["evaluate"], "train evaluate RUN", ["evaluate", "run", "tta=flip", "data.split_seed=0"]),
        (["resume"], "train resume RUN", ["resume", "run", "schedule_length=null"]),
    ],
)
def test_an_advised_flag_or_command_works(
    words: list[str], part: str, again: list[str], train: Train, folder: Path, trained: Path
) -> None:
    """`again` is what the message advises, with the words that it leaves to the user."""
    shutil.copytree(trained, folder / "run")
    (folder / "x.png").touch()
    for name in ("cfg", "more"):
        (folder / name).mkdir()
    (folder / "cfg/own.yaml").write_text("defaults: [train]\nhydra: {searchpath: ['file://more']}\n")
    assert advised(only(train(*words).problems, part))
    assert train(*again).code == 0


@pytest.mark.slow
def test_an_advised_command_of_a_run_works_with_any_name(train: Train, folder: Path) -> None:
    name = "it's a run"
    assert train(*SMALL, "hydra.run.dir='it\\'s a run'").code == 0

    def follow(text: str, value: str = "") -> None:
        words = shlex.split(advised(text)[0].replace("KEY=VALUE", value))
        done = train(*words[1:])
        assert (words[0], done.code, done.err) == ("train", 0, ""), text

    follow(only(train(*SMALL, "hydra.run.dir='it\\'s a run'").problems, "is not empty"))
    follow(only(train("resume", name, "optimizer.lr=0.5").problems, "for a new run: "))
    follow(train("resume", name).out)  # twice as long
    follow(only(train("resume", name, "epochs=6").out.splitlines(), "stop (Ctrl-C) and type: "))
    config = folder / name / "config.yaml"
    before = config.read_bytes()
    config.write_bytes(before.replace(b"seed: 5", b"seed: 6"))
    problem = only(train("resume", name).problems, "undo the change")
    config.write_bytes(before)
    follow(problem, "optimizer.lr=0.1")
    other = next(path for path in (folder / "outputs").glob("*/*") if path.is_dir())
    shutil.copytree(other / "checkpoints", folder / name / "checkpoints", dirs_exist_ok=True)
    (folder / name / "result.json").unlink()
    follow(only(train("resume", name).problems, "of another run"))


@pytest.mark.slow
def test_an_advised_name_of_a_sweep_works(train: Train, folder: Path) -> None:
    (folder / "cfg/model").mkdir(parents=True)
    option = folder / "cfg/model/own.yaml"
    for place in ("name=x", "hydra.sweep.dir=deep/x"):
        option.write_text("_target_: trainer.models.mlp.mlp\nhidden: [3]\n")
        words = ["-m", "--config-dir", "cfg", "model=own", "steps=2", "schedule=constant", "seed=1"]
        assert train(*words, place).code == 0
        option.write_text("_target_: trainer.models.mlp.mlp\nhidden: [4]\n")
        (item,) = advised(only(train(*words, place).problems, "give the sweep a new name: "))
        assert train(*words, item).code == 0


def test_less_memory_and_a_direction_are_advised_as_they_can_be_typed() -> None:
    for accumulate, micro_batch, count in ((1, None, 2), (4, None, 1), (1, 16, 1)):
        config = {"accumulate": accumulate, "micro_batch": micro_batch}
        run = SimpleNamespace(
            blueprint=SimpleNamespace(config=config), model=torch.nn.Linear(1, 1),
            strategy=SimpleNamespace(world_size=1), objective=SimpleNamespace(micro_batch=16),
        )  # fmt: skip
        with pytest.raises(OutOfMemory) as caught:
            refuse_or_halve(cast(Any, run), 64, torch.OutOfMemoryError())
        assert len(items := advised(str(caught.value))) == count
        assert [problems(["model=linear", item]) for item in items] == [[]] * count
    with pytest.raises(ValueError) as unknown:
        direction("val/nll", "auto", section="early_stopping.")
    items = advised(str(unknown.value))
    assert items == ["early_stopping.mode=min", "early_stopping.mode=max"]
    assert [problems([item]) for item in items] == [[], []]


FEW_SAMPLES = [
    # what is typed, how many samples batch norm sees, what is advised
    ("batch_size=6", "6 samples at", "batch_size=8"),
    ("batch_size=26 accumulate=4", "5 samples at", "batch_size=32"),
    ("batch_size=64 micro_batch=15", "4 samples at", "micro_batch=16"),
    ("batch_size=12 parallelism=local_sgd", "6 samples of one rank at", "batch_size=16"),
    ("batch_size=12 parallelism=downpour parallelism.devices=4", "3 samples of one rank at", "batch_size=32"),
    ("batch_size=24 parallelism=hybrid parallelism.batch_norm=plain accumulate=2", "6 samples of one rank at",
     "batch_size=32"),
    ("batch_size=12 parallelism=ddp parallelism.batch_norm=plain", "6 samples of one rank at", "batch_size=16"),
    ("batch_size=12 parallelism=ddp", None, None),
    ("batch_size=8", None, None),
    ("batch_size=6 model.norm=none", None, None),
    ("batch_size=6 parameter_groups.a.match='norm*' parameter_groups.a.frozen=true", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "seen", "item"), FEW_SAMPLES)
def test_batch_norm_of_few_samples_is_told_with_what_helps(typed: str, seen: str | None, item: str | None) -> None:
    def told(words: list[str]) -> str | None:
        blueprint = resolve(compose.compose(words))
        rows = list(model_rows(blueprint, model := meta_model(blueprint)))
        notice = few_samples(blueprint, model)
        assert [f"{name}: {text}" for name, text in rows] == ([] if notice is None else [notice])
        return notice

    words = [*shlex.split(typed.replace("'", '"')), "model=lenet", "data=synthetic", "data.num_train=640"]
    notice = told(words)
    if seen is None or item is None:
        assert notice is None
        return
    assert notice is not None and f"the statistics of {seen} a time" in notice
    assert advised(notice) == [item]
    assert told([*(word for word in words if word.partition("=")[0] != item.partition("=")[0]), item]) is None


def test_a_run_says_that_batch_norm_has_few_samples(train: Train) -> None:
    done = train("model=lenet", "batch_size=6", "steps=1")
    assert done.code == 0 and "takes the statistics of 6 samples at a time" in done.out


# --- every text that gives advice is tried above, or elsewhere, or needs no typing ------------------------------

TRIED = (
    "see train --help", "requires --cfg job", "--config-dir adds a folder", "train repeat RUN", "remove --multirun",
    "only --show without a name overwrites", "--config-dir FOLDER", "--trust ", "requires tta=ten_crop",
    "train evaluate RUN", "[key=value ...]", "continue the run in it",
    "train repeat \0", "train resume \0 \0=\0", " schedule_length=\0step",
    "undo the change", "; set batch_size=", "set micro_batch=", "set accumulate=", ", or micro_batch=auto", "mode=max",
)  # fmt: skip
ELSEWHERE = {
    "which a folder cannot ask for by itself": "test_a_primary_configuration_and_options_of_ones_own",
    "--config-dir": "a part of the message above",
    "train resume \0": "test_a_stopped_run_says_how_to_go_on_and_does, test_a_killed_rank",
    "resume=True": "Python, tests/test_python_api.py",
    "(compose(['epochs=3'])": "Python, tests/test_python_api.py",
    "leave accumulate=1": "tests/base/test_recomputation.py",
    "name more runs, or use ensemble=snapshots": "tests/studies/test_ensemble.py",
    "they are kept with averaging=snapshots": "tests/studies/test_ensemble.py",
    "data.on_bad_file=skip": "test_image_folder.py, with damaged photographs",
    "run again with data.download=true": "needs the network",
    "to name a run: train resume RUN": "as train resume RUN above",
    "deterministic=false": "test_the_literals",
    "set parallelism.unused_parameters=true": "test_the_literals",
    "choose averaging=none": "test_the_literals",
    "choose schedule=sgdr": "test_the_literals",
    "such as data.fold=0 data.folds=5": "test_the_literals",
    "return the module itself; ": "test_the_literals",
    "of which parallelism=": "test_the_literals",
    "init_strict=false takes what fits": "test_the_literals",
    "takes no average": "tests/configuration/test_lengths.py",
    "differentiates the loss itself": "only an optimizer of a user's does",
    "data.cache=memory": "test_the_literals",
    "weights=FILE reads them from a file": "test_weights_are_read_from_a_file",
}
STATEMENTS = {
    "(ulimit -n)": "for the shell", "tensorboard --logdir": "another program", "--debug shows": "for any command",
    "it is neither key=value": "a description",
    "study: is several runs": "a description", "such as study=k_fold": "an example",
    "texts key=value, and not": "a description", "must be key=value here": "a description",
    "--show draws": "the list of commands", "tta=flip|": "the list of commands",
    "`train repeat` runs": "in config.yaml",
    "is meant for the whole": "a remark of plan",
    "facts() says input_shape=": "what was returned", "the model has no centroids": "what has them",
    "--nproc-per-node=N": "another program", "srun --nodes=": "another program",
    "null with pretrained=true": "what was typed",
    "frozen=true": "keys of a parameter group in a file",
    "nonlinearity=leaky_relu": "a condition", "mode=fan_out": "a condition", "schedule=1f1b": "what was chosen",
    "false with parallelism=pipeline": "what was chosen",
    "parallelism=two_column": "what was chosen", "train plan: \0": "the command that was typed",
}  # fmt: skip


def test_all_advice_of_the_source_is_tried() -> None:
    """A new message that gives advice belongs to VALUES or TRIED, with a case that types it; or to the others."""
    known = [*(part for _, part in VALUES), *TRIED, *ELSEWHERE, *STATEMENTS]
    found = list(templates())
    assert len(found) > 50
    assert [text for text in found if not any(part in text for part in known)] == []
    assert [part for part in (*TRIED, *ELSEWHERE, *STATEMENTS) if not any(part in text for text in found)] == []


LITERALS = [
    *([word, "data=image_folder", "data.root=photographs/inner", "batch_size=2"]
      for word in ("data.on_bad_file=skip", "data.cache=memory", "data.cache=disk")),
    ["deterministic=false"],
    ["averaging=none"],
    ["averaging=snapshots", "schedule=sgdr"],
    ["data.fold=0", "data.folds=5"],
    ["init_strict=false", "init_from=RUN", "model=linear"],
    ["compile=true"],
    ["parallelism=fsdp", "model=linear"],
    ["parallelism=ddp", "parallelism.unused_parameters=true", "model=linear"],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("words", LITERALS)
def test_the_literals(words: list[str], places: dict[str, str]) -> None:
    assert problems([word.replace("RUN", places["RUN"]) for word in words]) == []

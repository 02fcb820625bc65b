"""User errors: each is reported in one line that names it and what is allowed, and leaves no files behind.

A case is a command line and, for each problem, the substrings of its line, joined by " & ". Commands run in a folder
that contains `file.txt`, the folder `full` with a file in it, and the user's options in `options`.
"""

import random
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.command_line.conftest import INSTALLED, Done, Train, listing

OPTIONS = {
    "model/broken.yaml": "# Broken\n_target_: [trainer.models.mlp.mlp\nhidden: 3\n",
    "model/listed.yaml": "- 1\n- 2\n",
    "model/nameless.yaml": "# Nothing but a number\nwidth: 3\n",
    "model/foreign.yaml": "# Not trusted\n_target_: mypackage.Net\n",
    "model/missing.yaml": "# Trusted, but not there\n_target_: trainer.models.nothere.net\n",
    "model/narrow.yaml": "# Gives one output too few\n_target_: torch.nn.LazyLinear\nout_features: 9\n",
    "optimizer/empty.yaml": "# Nothing\n",
    "experiment/good.yaml": "# @package _global_\nseed: 3\n",
    "experiment/odd.yaml": "# @package _global_\n# A key that there is not\nsead: 3\noptimizer: {lrr: 1}\n",
    "experiment/chooses.yaml": "# @package _global_\ndefaults:\n  - override /optimizer: adamx\n",
    "experiment/unpacked.yaml": "# The package line is missing\nseed: 3\n",
    "experiment/bad_value.yaml": "# @package _global_\nepochs: many\n",
    "experiment/callback.yaml": "# @package _global_\nsteps: 2\nepochs: 3\n",
}


@pytest.fixture
def workspace(folder: Path) -> Path:
    (folder / "file.txt").write_text("not a folder, not a checkpoint")
    (folder / "full").mkdir()
    (folder / "full/note.txt").write_text("mine")
    for name, content in OPTIONS.items():
        path = folder / "options" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def check(done: Done, lines: tuple[str, ...], code: int = 2) -> None:
    """Expects one `error: ` line per problem, in order, with its substrings; nothing on stdout."""
    problems = done.problems
    assert done.code == code, done
    assert done.out == ""
    assert len(problems) == len(lines), problems
    for problem, pieces in zip(problems, lines, strict=True):
        for piece in pieces.split(" & "):
            assert piece in problem


# --- overrides --------------------------------------------------------------------------------------------

SETTINGS = {
    "name": ["a/b", "", ".", "..", "true", "[a]", "a" * 101, "'ü" + "ü" * 50 + "'", "'a\tb'"],
    "tags": ["x", "5", "null", "[[a]]"],
    "epochs": ["0", "-4", "1.5", "abc", "true", "[1]", "inf", "99999999999999999999"],
    "steps": ["0", "-1", "2.5", "abc", "false"],
    "schedule_length": ["3", "0ep", "-1step", "long", "true"],
    "batch_size": ["0", "-64", "1.5", "null", "ful", "true", "[64]"],
    "lr_scaling": ["lin", "2", "null"],
    "reference_batch": ["0", "1.5", "null"],
    "accumulate": ["0", "null", "1.5", "two"],
    "limit_batches": ["0", "-1", "0.5", "all"],
    "micro_batch": ["0", "1.5", "aut", "true"],
    "seed": ["-1", "1.5", "true", "abc", "null", "9223372036854775808"],
    "deterministic": ["maybe", "1", "null"],
    "device": ["gpu", "null", "cuda:x", "5"],
    "threads": ["0", "1.5", "many", "1000000"],
    "precision": ["fp8", "null", "32"],
    "compile": ["yes", "1", "null"], "checkpoint_activations": ["yes", "1", "null"],
    "channels_last": ["sometimes", "null", "1"],
    "clip_norm": ["0", "-1", "inf", "nan", "abc", "true", "1e-400"],
    "clip_value": ["0", "-0.5", "nan", "[1]"],
    "no_weight_decay": ["bias", "null", "[1]"],
    "on_nonfinite": ["ignore", "null", "true"],
    "init_from": ["5", "[a]"],
    "init_strict": ["maybe", "1", "null"],
    "profile": ["0", "-1", "1.5"],
    "prune": ["0.2", "[a]", "true"],
    "early_stopping": ["5", "true", "patience"],
    "early_stopping.monitor": ["null", "3"],
    "early_stopping.mode": ["up", "null", "5"],
    "early_stopping.patience": ["0", "-1", "1.5", "null", "long"],
    "early_stopping.min_delta": ["-1", "nan", "inf", "null", "small"],
    "early_stopping.after": ["3", "soon", "null", "-1ep", "101%", "9" * 400 + "ep"],
    "every": ["null", "5ep", "3"],
    "every.log": ["50", "0step", "null", "1.5step", "often"],
    "every.evaluate": ["1", "150%", "0ep", "0%"],
    "every.checkpoint": ["-1ep", "1e3step", "true"],
}  # fmt: skip
# the allowed values that each message must list
ALLOWED = {
    "name": "null", "tags": "list", "epochs": "at least 1", "steps": "at least 1", "schedule_length": "",
    "batch_size": "full", "lr_scaling": "none, linear, sqrt", "reference_batch": "at least 1",
    "accumulate": "at least 1", "limit_batches": "null", "micro_batch": "auto", "seed": "at least 0",
    "deterministic": "true, false", "device": "auto, cpu, cuda", "threads": "at most 1024",
    "precision": "fp32, bf16, fp16, auto", "compile": "true, false",
    "checkpoint_activations": "true, false", "channels_last": "auto, true, false",
    "clip_norm": "above 0", "clip_value": "above 0", "no_weight_decay": "bias, norm", "init_from": "null",
    "init_strict": "true, false",
    "on_nonfinite": "stop, skip, rollback", "profile": "at least 1",
    "prune": "source, share, scope, mask, redraw",
    "early_stopping": "monitor, mode, patience, min_delta, after", "early_stopping.monitor": "name of a metric",
    "early_stopping.mode": "min, max or auto", "early_stopping.patience": "at least 1",
    "early_stopping.min_delta": "at least 0", "early_stopping.after": "", "every": "log, evaluate, checkpoint",
    "every.log": "", "every.evaluate": "", "every.checkpoint": "duration with a unit: 5ep, 500step or 10%",
}  # fmt: skip


# these would hide other problems of the same command line
ALONE = ("steps", "early_stopping", "every")


@pytest.mark.parametrize("turn", range(max(map(len, SETTINGS.values()))))
def test_settings_of_the_runner_all_wrong_at_once(turn: int, train: Train, workspace: Path) -> None:
    """The first bad value of every setting in one command line, then the second of each, and so on."""
    before = listing(workspace)
    typed = {key: values[turn] for key, values in SETTINGS.items() if turn < len(values)}
    together = {key: value for key, value in typed.items() if key not in ALONE}
    alone = [{key: value} for key, value in typed.items() if key in ALONE]
    for settings in ([together] if together else []) + alone:
        done = train(*(f"{key}={value}" for key, value in settings.items()))
        assert done.code == 2, done
        assert len(done.problems) == len(settings), done.problems
        for key, value in settings.items():
            (problem,) = (line for line in done.problems if line.startswith(f"{key}="))
            shown = {"1e-400": "0.0", "[[a]]": "[[a]]"}.get(value, value.strip("'").replace(":", ": "))
            assert shown in problem or value in problem
            assert ALLOWED[key] in problem
    assert listing(workspace) == before


def test_every_setting_is_in_the_table() -> None:
    written = yaml.safe_load((Path(__file__).parents[2] / "configs/train.yaml").read_text())
    del written["defaults"], written["hydra"]
    del written["parameter_groups"]  # see test_freezing.py
    keys = set(written) | {f"{k}.{name}" for k in ("early_stopping", "every") for name in written[k]}
    assert keys == set(SETTINGS)


CROP = "trainer.augmentation.Crop"
OVERRIDES = [
    # names
    ("optimizer=adamx", "optimizer=adamx & Did you mean 'optimizer=adamax'? & momentum, muon, nadam"),
    ("lr=0.1", "lr=0.1 & Did you mean 'optimizer.lr'?"),
    ("+patience=3", "patience=3 & Did you mean 'early_stopping.patience'?"),
    ("model.name=resnet20", "model.name=resnet20 & chosen by model=resnet20"),
    ("model.name=resnet18", "model.name=resnet18 & options with this key: model=timm, model=torchvision"),
    ("optimizer.momentum=0.9", "optimizer.momentum=0.9 & optimizer=momentum"),
    ("--trust mypackage,2 epochs=3", "--trust mypackage,2 & a or a,b"),
    ("optimizr=adamw", "optimizr=adamw & Did you mean 'optimizer'? & schedule"),
    ("optimizer.lrr=1", "optimizer.lrr=1 & Did you mean 'optimizer.lr'? & weight_decay"),
    ("+optimizer.lrr=1", "optimizer.lrr=1 & Did you mean 'optimizer.lr'?"),
    ("++optimizer.lrr=1", "optimizer.lrr=1 & Did you mean 'optimizer.lr'?"),
    ("+seeed=1", "seeed=1 & Did you mean 'seed'?"),
    ("early_stopping.patince=3", "early_stopping.patince=3 & Did you mean 'early_stopping.patience'?"),
    ("every.chekpoint=1ep", "every.chekpoint=1ep & Did you mean 'every.checkpoint'?"),
    ("augmentation=crop augmentation.crop.pading=2", "augmentation.crop.pading=2 & 'augmentation.crop.padding'?"),
    ("augmentation=crop +augmentation.blur=2", "augmentation.blur=2 & must be an operation, e.g. {_target_: trainer."),
    ("+augmentation.blur=2", "augmentation.blur=2 & must be an operation, e.g. {_target_: trainer."),
    ("augmentation=crop '+augmentation.corp={padding: 2}'",
     "augmentation.corp={padding: 2} & Did you mean augmentation.crop?"),
    ("augmentation=crop '+augmentation.blur={_target_: trainer.augmentation.GaussianBlur, nosuch: 2}'",
     "augmentation.blur.nosuch=2 & does not exist & probability"),
    ("augmentation=crop ~augmentation.crop '+augmentation.crop={padding: 2}'",
     "augmentation.crop={padding: 2} & must be an operation"),
    (f"augmentation=crop ~augmentation.crop '+augmentation.crop={{_target_: {CROP}, pading: 2}}'",
     "augmentation.crop.pading=2 & Did you mean 'augmentation.crop.padding'?"),
    (f"augmentation=crop ~augmentation.crop '+augmentation.crop={{_target_: {CROP}, padding: -1}}'",
     "augmentation.crop.padding=-1 & from 0 to 256"),
    (f"'augmentation.crop={{_target_: {CROP}}}'",
     "does not exist & to add an operation: +augmentation.crop={_target_: ...}"),
    ("augmentation=crop ~augmentation.crop.padding", "augmentation.crop.padding & is missing"),
    ("model/lenet=x", "model/lenet=x & does not exist"),
    ("optimizer@other=adam", "optimizer@other=adam"),
    ("+optimizer@other=adam", "other & does not exist"),
    ("+optimizer=adam", "+optimizer=adam & leave out the +"),
    ("'tags={a:1}'", "tags={a:1} & must be a list"),
    ("'optimizer.lr={a:1}' +optimizer.lr.b=1", "optimizer.lr={a: 1, b: 1} & a number"),
    ("+optimizer.lr=1", "+optimizer.lr=1 & leave out the +"),
    ("experiment=nosuch", "experiment=nosuch & does not exist & template"),
    ("debug=overfitt", "debug=overfitt & Did you mean 'debug=overfit'? & one_step"),
    ("model.input_shape=[1,8,8]", "model.input_shape=[1,8,8] & does not exist"),
    ("+model.num_outputs=5", "model.num_outputs=5 & does not exist"),
    # override syntax
    ("optimizer=", "optimizer= & momentum, muon, nadam"),
    ("model=null", "model=null & lenet, linear, lo"),
    ("optimizer=null", "optimizer=null & momentum, muon, nadam"),
    ("model=5", "model=5 & lenet, linear, lo"),
    ("optimizer=[sgd]", "optimizer=[sgd] & one option"),
    ("=5", "'=5' & key=value"),
    ("optimizer..lr=5", "'optimizer..lr=5' & key=value"),
    ("optimizer.=5", "'optimizer.=5' & key=value"),
    ("seed=1 optimizer", "'optimizer' & neither key=value nor"),
    ("seed=1 plan", "'plan' & as the first word, a command"),
    ("'optimizer.lr=[1'", "'optimizer.lr=[1' & quoted: \"optimizer.lr='[1'\""),
    ("name=a=b", "name=a=b & quoted: \"name='a=b'\""),
    ("name=ümläut", "name=ümläut & quoted: \"name='ümläut'\""),
    ("optimizer=sgd,adamw", "optimizer=sgd,adamw & needs -m"),
    ("'seed=range(1,3)'", "seed=range(1,3) & needs -m"),
    ("optimizer.lr=1 optimizer.lr=2", "optimizer.lr=1, optimizer.lr=2 & given twice"),
    ("optimizer=sgd optimizer=adamw", "optimizer=sgd, optimizer=adamw & given twice"),
    ("seed=1 ++seed=1", "seed=1, ++seed=1 & given twice"),
    ("epochs=2 steps=3", "epochs=2, steps=3 & one of the two"),
    ("epochs=null", "epochs=null, steps=null & one of the two"),
    ("accumulate=2 micro_batch=4", "accumulate=2, micro_batch=4 & one of the two"),
    ("~optimizer", "optimizer=null & an option of optimizer"),
    ("~optimizer.lr", "optimizer.lr & is missing"),
    ("~optimizer._target_", "optimizer._target_ & must name a class"),
    ("~epochs", "epochs & is missing"),
    ("~early_stopping", "early_stopping & early_stopping=null"),
    ("~early_stopping.patience", "early_stopping.patience & is missing"),
    ("~every.log", "every.log & is missing"),
    ("~optimizr", "~optimizr & Did you mean 'optimizer'?"),
    ("~optimizr.lr", "~optimizr.lr & Did you mean 'optimizer'?"),
    ("augmentation=flip_crop ~augmentation.flipp",
     "~augmentation.flipp & Did you mean 'augmentation.flip'? Known: crop, flip"),
    ("~every.log.steps", "~every.log.steps & every.log has no keys"),
    ("~name", "~name & cannot be deleted"),
    ("augmentation=crop ~augmentation.crop", "augmentation & at least one & augmentation=none"),
    ("'optimizer.lr=${nosuch}'", "optimizer.lr & nosuch"),
    ("'optimizer.lr=${oc.env:NOSUCH}'", "optimizer.lr & NOSUCH"),
    ("'epochs=${epochs}'", "epochs & Recursive"),
    ("'optimizer.lr=???'", "optimizer.lr=??? & must be given"),
    # incompatible combinations
    ("micro_batch=auto model=resnet20", "micro_batch=auto & batch norm"),
    ("model=mlp 'model.hidden=[1000000000000]'", "model & memory & this machine has"),
    ("model=mlp 'model.hidden=[99999999999999999999]'", "model & size"),
    ("steps=10 schedule.warmup=10step", "schedule.warmup=10step & shorter than the run of 10 steps"),
    ("data=mnist data.root=full data.download=false", "mnist & not complete & data.download=true"),
    ("init_from=full", "init_from=full & neither a run folder nor a file"),
    ("data=blobs model=resnet20", "model & at least 4x4 & data=blobs has features & model=mlp and model=linear"),
    ("data=blobs model=mlp augmentation=flip_crop", "augmentation=flip_crop & data=blobs has features"),
    ("data=linear_regression model=linear", "loss=cross_entropy & data=linear_regression is regression"),
    ("data=linear_regression model=linear loss=mse sampler=class_balanced", "sampler=class_balanced & by class"),
    ("data=linear_regression model=linear loss=mse data.num_features=1", "data.condition_number=1e+10 & single"),
    ("data=map_style data.train.num_images=0", "data.train=Bars & no samples"),
    ("data=map_style data.train._target_=torchvision.datasets.FakeData ~data.train.num_images",
     "data.train._target_=torchvision.datasets.FakeData & --trust torchvision"),
    ("preprocessing=pca_whitening preprocessing.components=65", "preprocessing.components=65 & at most 64"),
    ("data=synthetic data.size=128 preprocessing=zca model=linear", "preprocessing & 12,288 values & 49,152"),
    # class names
    ("optimizer._target_=null", "optimizer._target_=null & torch.optim.AdamW"),
    ("optimizer._target_=5", "optimizer._target_=5 & not in a trusted package"),
    ("optimizer._target_=os.system", "optimizer._target_=os.system & --trust os"),
    ("optimizer._target_=builtins.eval", "optimizer._target_=builtins.eval & --trust builtins"),
    ("augmentation=crop augmentation.crop._target_=os.system", "augmentation.crop._target_=os.system & --trust os"),
    ("optimizer._target_=torch.optim.Adamx", "torch.optim.Adamx & Did you mean 'torch.optim.Adamax'?"),
    ("optimizer._target_=torch.optim", "optimizer._target_=torch.optim & a module"),
    ("optimizer._target_=torch.nn.nosuch.X", "torch.nn.nosuch.X & cannot import"),
    ("optimizer._target_=torch.optim.optimizer.os.system", "torch.optim.optimizer.os.system & cannot import"),
    ("model._target_=trainer.data.digits.torch.hub.load", "trainer.data.digits.torch.hub.load & cannot import"),
    ("model._target_=trainer.data.torchvision_sets.Path", "torchvision_sets.Path & comes from pathlib & --trust"),
    ("model._target_=torch.nn.functional.handle_torch_function", "comes from torch.overrides & --trust"),
    ("model._target_=trainer.models.lenet.lennet", "lennet & Did you mean 'trainer.models.lenet.lenet'?"),
    ("loss._target_=torch.nn.CrossEntropyLoss ~loss.base", "loss._target_=torch.nn.CrossEntropyLoss & tasks, metrics"),
    ("sampler._target_=torch.nn.ReLU", "sampler._target_=torch.nn.ReLU & order"),
    ("model=linear model._target_=torch.nn.Linear", "model & torch.nn.Linear also needs in_features, out_features"),
    ("model=linear model._target_=torch.nn.Bilinear", "model & in1_features"),
    # Hydra's own settings
    ("hydra.run.dir=/dev/null/x", "hydra.run.dir=/dev/null/x & not a folder"),
    ("hydra.run.dir=file.txt", "hydra.run.dir=file.txt & not a folder"),
    ("hydra.run.dir=file.txt/x/y", "hydra.run.dir=file.txt/x/y & file.txt is not a folder"),
    ("hydra.run.dir=full", "hydra.run.dir=full & not empty"),
    ("hydra.run.dir=", "hydra.run.dir= & must name a folder"),
    ("hydra.run.dir=null", "hydra.run.dir=null"),
    ("hydra.callbacks=null", "hydra.callbacks=null & cannot be changed"),
    ("hydra.output_subdir=x", "hydra.output_subdir=x & cannot be changed"),
    ("hydra=5", "hydra=5 & cannot be changed"),
    ("~hydra.run.dir", "~hydra.run.dir & cannot be changed"),
    ("hydra.searchpath=[file:///nowhere]", "hydra.searchpath=[file:///nowhere] & no such folder"),
    ("hydra.searchpath=5", "hydra.searchpath=5 & a list"),
    ("+choices={a:1}", "choices & GROUP=OPTION"),
    ("hydra.mode=foo", "hydra.mode=foo & MULTIRUN"),
    ("hydra.nosuch=1", "hydra.nosuch=1 & does not exist"),
    ("hydra/launcher=nosuch", "hydra/launcher=nosuch & basic"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "line"), OVERRIDES, ids=[typed for typed, _ in OVERRIDES])
def test_overrides(typed: str, line: str, train: Train, workspace: Path) -> None:
    before = listing(workspace)
    check(train(*shlex.split(typed)), (line,))
    assert listing(workspace) == before


# several problems in one command line; those of one row are found by the same check
VALUES = [
    (("optimizer.lr=abc optimizer.betas=0.9 optimizer.eps=-1 optimizer.weight_decay=-0.1 optimizer.amsgrad=5 "
      "schedule.warmup=5 data.epochs=0 model.channels=5"),
     "optimizer.lr=abc & a number", "optimizer.betas=0.9 & a list & [0.9, 0.999]", "optimizer.eps=-1 & (0, inf)",
     "optimizer.weight_decay=-0.1 & [0, inf)", "optimizer.amsgrad=5 & true or false",
     "schedule.warmup=5 & a duration with a unit & 5%", "data.epochs=0 & at least 1", "model.channels=5 & a list"),
    ("optimizer.lr=nan optimizer.betas=[0.9,2] data.epochs=abc augmentation=crop augmentation.crop=null",
     "optimizer.lr=nan & a number", "optimizer.betas=[0.9, 2] & [0, 1)", "data.epochs=abc & a number",
     "augmentation.crop=null & a mapping"),
    ("optimizer.lr=inf data.epochs=null", "optimizer.lr=inf & (0, inf)", "data.epochs=null & at least 1"),
    ("optimizer.lr=0 data=mnist data.download=maybe data.root=/nowhere", "optimizer.lr=0 & (0, inf)",
     "data.download=maybe & true or false", "data.root=/nowhere & no such folder & DATA_ROOT"),
    ("optimizer.lr=-1 data=mnist data.root=file.txt", "optimizer.lr=-1 & (0, inf)", "data.root=file.txt & is a file"),
    ("optimizer.lr=null model=mlp model.hidden=5", "optimizer.lr=null & (0, inf)", "model.hidden=5 & a list"),
    ("optimizer=momentum optimizer.lr=true optimizer.momentum=1.5",
     "optimizer.lr=true & a number", "optimizer.momentum=1.5 & [0, 1)"),
    ("'optimizer.lr={a:1}'", "optimizer.lr={a: 1} & a number"),
    (("optimizer=lbfgs optimizer.line_search_fn=armijo optimizer.max_eval=0 optimizer.tolerance_grad=-1 "
      "optimizer.history_size=0"),
     "optimizer.max_eval=0 & at least 1 or null", "optimizer.history_size=0 & at least 1",
     "optimizer.tolerance_grad=-1 & [0, inf)", "optimizer.line_search_fn=armijo & strong_wolfe, null"),
    ("optimizer=muon optimizer.ns_coefficients=[nan,1,2]", "optimizer.ns_coefficients=[nan, 1, 2] & without nan"),
    ("optimizer=adagrad optimizer.initial_accumulator_value=-1 optimizer.eps=0",
     "optimizer.eps=0 & (0, inf)", "optimizer.initial_accumulator_value=-1 & [0, inf)"),
    (("data.val_fraction=0 loss.label_smoothing=1 preprocessing.per=chanel initializer=normal initializer.std=-1 "
      "augmentation=crop augmentation.crop.padding=-1 optimizer.betas=[0.9]"),
     "data.val_fraction=0 & between 0 and 1", "loss.label_smoothing=1 & [0, 1)",
     "preprocessing.per=chanel & channel, feature", "initializer.std=-1 & above 0",
     "augmentation.crop.padding=-1 & from 0 to 256", "optimizer.betas=[0.9] & a list of a number and a number"),
    ("data.val_fraction=0.99 loss.base=10 initializer=kaiming_normal initializer.mode=fan",
     "data.val_fraction=0.99 & test_fraction", "loss.base=10 & e, 2", "initializer.mode=fan & did you mean fan_in?"),
    ("data.split_seed=-1", "data.split_seed=-1 & between 0 and"),
    ("sampler=hard_examples sampler.uniform=0 preprocessing=zca preprocessing.epsilon=-1 data=synthetic data.size=8",
     "data.size=8 & from 16 to 512", "preprocessing.epsilon=-1 & at least 0", "sampler.uniform=0 & above 0"),
    (("model.drop_prob=1 schedule.warmup=100% batch_size=1000000000 device=cuda:99 early_stopping.monitor=val/acuracy "
      "init_from=/nowhere"),
     "model.drop_prob=1 & [0, 1)", "schedule.warmup=100% & shorter than the run",
     "batch_size=1000000000 & at most 1437 & full",
     "device=cuda:99 & this machine has", "early_stopping.monitor=val/acuracy & Did you mean 'val/accuracy'?",
     "init_from=/nowhere & neither a run folder nor a file"),
    (("model.activation=rleu schedule.warmup=30ep accumulate=100 optimizer=momentum optimizer.nesterov=true "
      "optimizer.dampening=0.5"),
     "model.activation=rleu & did you mean relu?", "schedule.warmup=30ep & 690 steps",
     "accumulate=100 & at most batch_size=64", "optimizer.nesterov=true & false with dampening=0.5"),
    ("model.channels=[20.5] schedule.warmup_start=2",
     "model.channels=[20.5] & a whole number", "schedule.warmup_start=2 & [0, 1]"),
    ("model=resnet model.depth=21 schedule=step schedule.every=0ep",
     "model.depth=21 & 20 and 26", "schedule.every=0ep & at least one step"),
    ("model.channels=[20,50,50,50] schedule=step schedule.factor=1",
     "model & at least 16x16 & data gives 8x8", "schedule.factor=1 & (0, 1)"),
    ("model=torchvision model.name=alexnet schedule=plateau schedule.monitor=val/los",
     "alexnet & at least 63x63 & data gives 8x8", "schedule.monitor=val/los & Did you mean 'val/loss'?"),
    ("model=torchvision model.name=alexnett +model.arguments.width=2",
     "model.name=alexnett & did you mean alexnet?"),
]  # fmt: skip


@pytest.mark.parametrize("case", VALUES, ids=[case[0] for case in VALUES])
def test_values_of_the_groups(case: tuple[str, ...], train: Train, workspace: Path) -> None:
    before = listing(workspace)
    done = train(*shlex.split(case[0]))
    assert done.code == 2, done
    assert len(done.problems) == len(case) - 1, done.problems
    for line in case[1:]:
        found = [problem for problem in done.problems if all(piece in problem for piece in line.split(" & "))]
        assert len(found) == 1, (line, done.problems)
    assert listing(workspace) == before


COMMANDS = [
    ("trian", "'trian' & plan, resume, repeat, evaluate"),
    ("pln optimizer=adamw", "'pln' & Did you mean 'plan'?"),
    ("optimizer", "'optimizer' & Did you mean 'optimizer=...'?"),
    ("optimzer lr=5", "'optimzer' & Did you mean 'optimizer=...'?"),
    ("resume", "train resume RUN"),
    ("resume nowhere", "nowhere & no such run folder"),
    ("resume full", "full & not a run folder & config.yaml"),
    ("resume full full", "train resume RUN"),
    ("resume file.txt", "file.txt & is a file"),
    ("resume --frob", "no option --frob"),
    ("resume outputs/0_optimizer=sgd", "outputs/0_optimizer=sgd & no such run folder"),
    (f"resume {'x' * 300}", "no such run folder"),
    ("repeat", "train repeat RUN"),
    ("repeat nowhere optimizer=sgd", "nowhere & no such run folder"),
    ("repeat full", "full & not a run folder"),
    ("evaluate", "train evaluate RUN"),
    ("evaluate full", "full & not a run folder"),
    ("evaluate nowhere elsewhere", "nowhere & no such run folder", "elsewhere & no such run folder"),
    ("plan nosuch=1", "nosuch=1 & does not exist"),
    ("--nosuch", "'--nosuch' & --multirun"),
    ("--mutlirun seed=1,2", "'--mutlirun' & Did you mean '--multirun'?"),
    ("seed=1 --nosuch --mutlirun", "'--nosuch'", "'--mutlirun'"),
    ("--cfg", "--cfg"),
    ("--cfg jobs", "'jobs' & 'job'"),
    ("--cfg job --info config", "--cfg, --info & one of them"),
    ("-m --cfg job seed=1,2", "--multirun, --cfg & one of them"),
    ("--resolve", "--resolve & --cfg"),
    ("--package optimizer", "--package & --cfg"),
    ("--cfg job --package nosuch", "--package & 'nosuch'"),
    ("-sc", "install"),
    ("-sc query=nosuch", "'nosuch' & bash"),
    ("-m seed=1,2 hydra.mode=RUN", "--multirun, hydra.mode=RUN"),
    ("--experimental-rerun full", "--experimental-rerun & train repeat"),
    ("--trust", "--trust & package"),
    ("--trust ';rm' seed=1", "--trust ;rm & package"),
    ("--config-dir", "--config-dir"),
    ("--config-dir nowhere", "nowhere & no such folder"),
    ("--config-dir file.txt", "file.txt & no such folder"),
    ("--config-name nosuch", "nosuch"),
    ("--config-path /nowhere", "--config-path: is not supported & --config-dir"),
    ("--cfg job optimizer=adamx", "optimizer=adamx & Did you mean 'optimizer=adamax'?"),
    ("--config-dir options model=broken", "options/model/broken.yaml, line 3 & not YAML"),
    ("--config-dir options model=listed", "model=[1, 2] & names no class & _target_"),
    ("--config-dir options model=nameless", "model & names no class & _target_"),
    ("--config-dir options optimizer=empty", "optimizer & names no class & _target_"),
    ("--config-dir options model=foreign", "model._target_=mypackage.Net & --trust mypackage"),
    ("--trust mypackage --config-dir options model=foreign", "mypackage.Net & cannot import mypackage"),
    ("--config-dir options model=missing", "trainer.models.nothere.net & cannot import"),
    ("--config-dir options model=narrow", "model & (2, 1, 8, 9) & (2, 10)"),
    ("--config-dir options model=nosuch", "model=nosuch & foreign"),
    ("--config-dir options experiment=godo", "experiment=godo & Did you mean 'experiment=good'?"),
    ("--config-dir options experiment=odd",
     "optimizer.lrr=1 & Did you mean 'optimizer.lr'?", "sead=3 & Did you mean 'seed'?"),
    ("--config-dir options experiment=chooses", "optimizer=adamx & Did you mean 'optimizer=adamax'?"),
    ("--config-dir options experiment=unpacked", "experiment & # @package _global_"),
    ("--config-dir options experiment=bad_value", "epochs=many & at least 1"),
]  # fmt: skip


@pytest.mark.parametrize("case", COMMANDS, ids=[case[0][:60] for case in COMMANDS])
def test_commands_flags_and_files(case: tuple[str, ...], train: Train, workspace: Path) -> None:
    before = listing(workspace)
    check(train(*shlex.split(case[0])), case[1:])
    assert listing(workspace) == before


def test_files_of_options_that_hydra_would_stumble_over(train: Train, workspace: Path) -> None:
    """A file with the name of a built-in option would be ignored; one that is not UTF-8 raises an obscure error in
    Hydra."""
    (workspace / "options/optimizer/adamw.yaml").write_text("# Mine\n_target_: torch.optim.SGD\n")
    (workspace / "options/optimizer/latin.yaml").write_bytes(b"# caf\xe9\n_target_: torch.optim.SGD\n")
    lines = ("options/optimizer/adamw.yaml & rename", "options/optimizer/latin.yaml & UTF-8")
    for command in ((), ("-m",), ("plan",)):
        check(train(*command, "--config-dir", "options", "model=mlp"), lines)


HYDRAS_OWN = [
    "callbacks: {evil: {_target_: subprocess.call, args: touch was_here}}",
    "callbacks: {evil: {_target_: logging.os.system, command: touch was_here}}",
    "job_logging: {handlers: {h: {(): subprocess.call, args: [touch, was_here]}}, root: {handlers: [h]}}",
    "hydra_logging: {version: 1, handlers: {h: {class: os.system, command: touch was_here}}}",
    "launcher: {_target_: subprocess.call}",
]


@pytest.mark.parametrize("node", HYDRAS_OWN)
@pytest.mark.parametrize("arguments", [[], ["-m", "seed=1,2"]])
def test_hydra_runs_nothing_that_is_not_trusted(node: str, arguments: list[str], train: Train, workspace: Path) -> None:
    """Hydra instantiates classes of its own node before any job, so the node is checked first."""
    (workspace / "options/experiment/evil.yaml").write_text(f"# @package _global_\n# Evil\nhydra:\n  {node}\n")
    before = listing(workspace)
    check(train(*arguments, "--config-dir", "options", "experiment=evil"), ("hydra. & not trusted",))
    check(train(*arguments, "hydra.searchpath=[file://options]", "experiment=evil"), ("hydra. & not trusted",))
    assert listing(workspace) == before


SWEEPS = [
    ("optimizer=sgd,adamx", "optimizer=adamx & Did you mean 'optimizer=adamax'? & [trial optimizer=adamx]"),
    ("optimizer.lr=0.1,abc", "optimizer.lr=abc & a number & [trial optimizer.lr=abc]"),
    ("model=null,mlp", "model=null & lenet & [trial model=null]"),
    ("epochs=1,2 steps=5", "epochs=1, steps=5 & one of the two", "epochs=2, steps=5 & one of the two"),
    ("name=a/b,c", "name=a/b & folder"),
    ("seed=1,2 early_stopping.monitor=val/los", "val/los & Did you mean 'val/loss'?"),
    ("seed=1,2 optimizr=sgd", "optimizr=sgd & Did you mean 'optimizer'?"),
    ("seed=1,2 seed=3", "seed=1,2, seed=3 & given twice"),
    ("'seed=range(0,0)'", "seed=range(0,0) & no values"),
    ("'seed=range(0,1,0)'", "seed=range(0,1,0) & never ends"),
    ("'seed=range(0,1000000000)'", "1,000,000,000 trials"),
    ("'seed=shuffle(1,2)'", "seed=shuffle(1,2) & must not be shuffled"),
    ("'optimizer.lr=interval(0,1)'", "optimizer.lr=interval(0,1) & must be a list of values"),
    ("seed=1,2 hydra.sweep.dir=full", "hydra.sweep.dir=full & not empty"),
    ("seed=1,2 hydra.sweep.dir=file.txt/x", "hydra.sweep.dir=file.txt/x & not a folder"),
    ("seed=1,2 hydra/sweeper=nosuch", "hydra/sweeper=nosuch & basic"),
    ("seed=1,2 hydra.launcher._target_=os.system", "os.system"),
    ("seed=1,2 hydra.sweeper=null", "hydra.sweeper=null & cannot be changed"),
    ("seed=1,2 hydra.sweep.subdir=same", "hydra.sweep.subdir=same & differ"),
    ("seed=1,2 hydra.mode=RUN,MULTIRUN", "hydra.mode=RUN,MULTIRUN"),
]  # fmt: skip


@pytest.mark.parametrize("case", SWEEPS, ids=[case[0] for case in SWEEPS])
def test_a_sweep_with_one_bad_trial_starts_none(case: tuple[str, ...], train: Train, workspace: Path) -> None:
    before = listing(workspace)
    check(train("-m", *shlex.split(case[0])), case[1:])
    assert listing(workspace) == before


def test_all_problems_are_told_at_once(train: Train, workspace: Path) -> None:
    arguments = (
        "optimizr=1 optimizer.lrr=1 epochs=-3 model=lenett batch_size=0 seed=1 seed=2 data.rot=5 foo schedule.warmup=x"
    )
    done = train(*arguments.split())
    check(
        done,
        (
            "seed=1, seed=2", "'foo'", "'model=lenett' & Did you mean 'model=lenet'?", "optimizr=1", "optimizer.lrr=1",
            "data.rot=5", "epochs=-3", "batch_size=0", "schedule.warmup=x",
        ),
    )  # fmt: skip
    # problems that are known even though the whole does not compose
    lines = ("'model=lenett' & Did you mean 'model=lenet'?", "~optimizer.lrr & Did you mean 'optimizer.lr'?")
    check(train("~optimizer.lrr", "model=lenett"), lines)
    # problems that need torch are reported together
    arguments = (
        "model.drop_prob=2 schedule.warmup=100% batch_size=100000 loss.label_smoothing=1 data.val_fraction=3 device=mps"
    )
    done = train(*arguments.split())
    assert {"data.val_fraction=3", "loss.label_smoothing=1"} <= {line.partition(":")[0] for line in done.problems}
    arguments = (
        "model.drop_prob=2 schedule.warmup=100% batch_size=100000 early_stopping.monitor=x optimizer.betas=[0.9]"
    )
    check(train(*arguments.split()), ("optimizer.betas", "batch_size", "early_stopping.monitor", "schedule", "model"))


def test_what_is_not_utf8_is_refused(train: Train, workspace: Path) -> None:
    before = listing(workspace)
    check(train("name='\udcff'"), ("\\udcff & cannot read & is not UTF-8",))
    assert listing(workspace) == before


# --- recorded runs ----------------------------------------------------------------------------------------


@pytest.fixture
def run(trained: Path, workspace: Path) -> Path:
    """A copy of the completed run."""
    return Path(shutil.copytree(trained, workspace / "run"))


def edit(path: Path, key: str, value: object) -> None:
    config = yaml.safe_load(path.read_text())
    *groups, last = key.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[last] = value
    path.write_text(yaml.safe_dump(config))


def test_words_after_a_run(train: Train, run: Path) -> None:
    cases = [
        ("resume run optimizer.lr=1", "optimizer.lr=1 & the run has 0.002 & epochs, steps, schedule_length"),
        ("resume run optimizer=sgd", "optimizer=sgd & the run has adamw & train repeat run optimizer=sgd"),
        ("resume run model.hidden=[3]", "model.hidden & does not exist"),
        ("resume run steps=1", "steps=1 & taken 2"),
        ("resume run steps=0", "steps=0 & at least 1"),
        ("resume run epochs=2 steps=3", "epochs=2, steps=3 & one of the two"),
        ("resume run epochs=2 epochs=3", "epochs=2, epochs=3 & given twice"),
        ("resume run epochs=x", "epochs=x & at least 1"),
        ("resume run +epochs=3", "+epochs=3 & key=value"),
        ("resume run parallelism=doubl", "parallelism=doubl & single"),
        ("repeat run optimizer=adamx", "optimizer=adamx & Did you mean 'optimizer=adamax'?"),
        ("repeat run optimizr=sgd", "optimizr & Did you mean 'optimizer'?"),
        ("repeat run optimizer.lr=abc", "optimizer.lr=abc & a number"),
        ("repeat run seed=a", "seed=a & at least 0"),
        ("repeat run seed=1,2", "seed=1,2 & needs -m"),
        ("repeat run ~seed", "~seed & no such run folder"),
        ("repeat run batch_size=99999", "batch_size=99999 & at most 1437"),
        ("repeat run init_from=nowhere", "init_from=nowhere"),
        ("evaluate run model=mlp", "best.pt & does not fit & model=mlp"),
        ("evaluate run data=mnist data.root=nowhere", "data.root=nowhere & no such folder"),
    ]  # fmt: skip
    before = listing(run.parent)
    for typed, line in cases:
        done = train(*shlex.split(typed))
        assert done.code == 2, (typed, done)
        assert any(all(piece in problem for piece in line.split(" & ")) for problem in done.problems), (typed, done)
    assert listing(run.parent) == before


@pytest.mark.parametrize("command", ["resume", "repeat", "evaluate"])
def test_a_damaged_configuration_is_code_65(command: str, train: Train, run: Path) -> None:
    good = (run / "config.yaml").read_text()
    for damaged in ("", "{", "- 1", "seed: 1", good.replace("epochs", "epoxhs"), good.replace("choices:", "choises:"),
                    good.replace("  schedule: cosine_warmup", "  shedule: cosine_warmup"),
                    good.replace("batch_size: 128", "batch_size: x"), "\x00" + good):  # fmt: skip
        (run / "config.yaml").write_text(damaged)
        before = listing(run.parent)
        check(train(command, "run"), ("run/config.yaml & damaged",), 65)
        assert listing(run.parent) == before
    (run / "config.yaml").write_bytes(good.encode().replace(b"linear", b"line\xe1r"))
    check(train(command, "run"), ("run/config.yaml & damaged",), 65)


def test_what_a_run_needs_and_is_not_here(train: Train, run: Path) -> None:
    edit(run / "config.yaml", "model._target_", "mypackage.Net")
    check(train("evaluate", "run"), ("model._target_=mypackage.Net & --trust mypackage",))
    edit(run / "config.yaml", "model._target_", "trainer.models.mlp.linear")
    edit(run / "config.yaml", "data.root", "/nowhere")
    check(train("repeat", "run"), ("data.root=/nowhere & no such folder",))


def test_a_damaged_result_is_code_65(train: Train, run: Path) -> None:
    for damaged in ("{", "[]", "{}"):
        (run / "result.json").write_text(damaged)
        check(train("resume", "run", "steps=4"), ("run/result.json & damaged",), 65)
        assert (run / "result.json").read_text() == damaged


def test_weights_that_do_not_fit_are_code_2_and_damaged_ones_65(train: Train, run: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, "other.pt")
    torch.save([1, 2], "list.pt")
    Path("cut.pt").write_bytes((run / "checkpoints/best.pt").read_bytes()[:-100])
    before = listing(run.parent)
    check(train("init_from=file.txt"), ("init_from=file.txt",))
    check(train("init_from=list.pt"), ("init_from=list.pt & state dict",))
    check(train("init_from=other.pt"), ("init_from=other.pt & does not fit",))
    check(train("init_from=run", "model=mlp"), ("init_from=run & does not fit",))
    check(
        train("-m", "init_from=run", "model=mlp,linear"),
        ("init_from=run & does not fit & [trial init_from=run model=mlp]",),
    )
    check(train("init_from=cut.pt"), ("init_from=cut.pt & damaged",), 65)
    check(train("+prune.source=run", "model=mlp"), ("prune.source=run & has no weight",))
    network = ["model=torchvision", "model.name=squeezenet1_1", "data=synthetic", "data.size=32"]
    check(train(*network, "model.weights=list.pt"), ("model.weights=list.pt & state dict",))
    check(train(*network, "model.weights=cut.pt"), ("model.weights=cut.pt & damaged",), 65)
    assert listing(run.parent) == before
    assert train("init_from=run", "model=linear", "steps=1", "schedule=constant").code == 0


# --- as processes, and at random --------------------------------------------------------------------------

WITHOUT_TORCH = ["optimizer=adamx", "optimizr=adamw", "optimizer.lrr=1", "+optimizer.lrr=1", "optimizer.lr=abc",
                 "epochs=-4", "data=mnist data.root=/nowhere", "hydra.run.dir=/dev/null/x", "seed=1 seed=2",
                 "trian"]  # fmt: skip
WITH_TORCH = ["early_stopping.monitor=val/acuracy", "batch_size=1000000000", "model.channels=[20,50,50,50]"]


@pytest.mark.parametrize("typed", WITHOUT_TORCH[:2])
def test_the_installed_program_says_the_same(typed: str, process: Train, train: Train, workspace: Path) -> None:
    before = listing(workspace)
    done = process(*typed.split(), program=INSTALLED)
    assert (done.code, len(done.problems), done.out) == (2, 1, "")
    assert listing(workspace) == before
    assert done.err == train(*typed.split()).err


ASK = """
import sys
from trainer.app import main
for typed in sys.argv[1:]:
    sys.argv = ["train", *typed.split()]
    try:
        main()
    except SystemExit as leaving:
        print(leaving.code, "torch" in sys.modules)
"""


def test_what_is_known_without_torch_is_said_without_torch(process: Train, train: Train, workspace: Path) -> None:
    """In a process that has not imported torch, with the same messages as in one that has."""
    cases = [*WITHOUT_TORCH, "resume full", "--config-dir options model=broken", "hydra.run.dir=file.txt", "--nosuch"]
    done = process(*cases, WITH_TORCH[0], program=(sys.executable, "-c", ASK))
    assert done.out.splitlines() == ["2 False"] * len(cases) + ["2 True"]
    assert len(done.problems) == len(cases) + 1
    assert done.err == "".join(train(*typed.split()).err for typed in [*cases, WITH_TORCH[0]])


@pytest.mark.slow
def test_mistakes_are_told_quickly(process: Train, workspace: Path, seconds_of_torch: float) -> None:
    """In half of the time of importing torch (usually a seventh), or in three times that if the check needs torch."""
    for limit, cases in ((0.5, WITHOUT_TORCH), (3.0, WITH_TORCH)):
        for typed in cases:
            most = limit * seconds_of_torch
            # other load on the machine may delay single attempts
            assert any(process(*typed.split(), program=INSTALLED).seconds < most for _ in range(3)), typed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_mistakes_are_never_a_bug_of_ours(seed: int, train: Train, run: Path) -> None:
    """Overrides, and the files of a run, with a few characters changed."""
    draw = random.Random(seed)
    quick = ["model=linear", "steps=1", "schedule=constant", "every.evaluate=100%", "diagnostics=off"]
    valid = [
        "optimizer=sgd", "optimizer.lr=0.1", "schedule=cosine", "epochs=1", "seed=3", "early_stopping.patience=3",
        "early_stopping=null", "batch_size=64", "precision=bf16", "clip_norm=1.0", "data.val_fraction=0.2",
        "tags=[a,b]", "name=abc", "every.log=5step", "optimizer.weight_decay=0.1", "loss=mse", "augmentation=crop",
        "init_from=run", "preprocessing.per=feature", "hydra.run.dir=here", "~tags", "+tags=[c]",
        "limit_batches=2", "device=cpu",
    ]  # fmt: skip
    alphabet = "abz019.,=+-~/[]{}()$:'\"\\@%*! \té\x7f"

    def mutated(text: str) -> str:
        for _ in range(draw.randint(1, 3)):
            index = draw.randrange(len(text) + 1)
            text = text[:index] + draw.choice([draw.choice(alphabet), ""]) + text[index + draw.randint(0, 1) :]
        return text

    def survive(*arguments: str) -> None:
        done = train(*arguments)
        assert done.code in (0, 2, 65, 70, 74), (arguments, done)
        assert "Traceback" not in done.err and "this is a bug" not in done.err, (arguments, done)

    for _ in range(60):
        arguments = quick + draw.sample(valid, 1)
        arguments[draw.randrange(len(arguments))] = mutated(draw.choice(valid))
        survive(*draw.choice([[], ["-m"], ["plan"]]), *arguments)
    original = (run / "config.yaml").read_text()
    for _ in range(20):
        index = draw.randrange(len(original))
        (run / "config.yaml").write_text(original[:index] + draw.choice(alphabet) + original[index + 1 :])
        survive(draw.choice(["repeat", "evaluate", "resume"]), "run")

"""Configurations of an attacker: files of options, and what the victim types. Each would leave a mark if it ran.

MARK stands for the path of the mark.
"""

from collections.abc import Iterator
from typing import NamedTuple


class Attack(NamedTuple):
    """`files` lie in the folder `options`; `is_in_node`: in Hydra's own node, by a file of an experiment."""

    name: str
    files: dict[str, str]
    words: list[str]
    is_in_node: bool = False


CALLS = {
    "system": "{_target_: os.system, command: touch MARK}",
    "call": "{_target_: subprocess.call, args: [touch, MARK]}",
    "torch": "{_target_: torch.utils.collect_env.run, command: touch MARK}",
    "logging": "{_target_: logging.os.system, command: touch MARK}",
    "nested": "{_target_: trainer.hydra_entry.preflight.Preflight, x: {_target_: os.system, command: touch MARK}}",
    "open": "{_target_: io.open, file: MARK, mode: w}",
    "handler": "{_target_: logging.FileHandler, filename: MARK, mode: w}",
}
# where Hydra would call a node, and how a file may name it: {} is the node, ${evil} refers to it
PLACES = {
    "callback": "callbacks: {{x: {}}}",
    "callback referred to": "callbacks: {{x: '${{evil}}'}}",
    "callbacks referred to": "callbacks: ${{evils}}",
    "callback in a list": "callbacks: {{x: {{_target_: trainer.hydra_entry.preflight.Preflight, y: [{}]}}}}",
    "callback's argument": "callbacks: {{preflight: {{y: '${{evil}}'}}}}",
    "callback in place of ours": "callbacks: {{preflight: {}}}",
    "callback's class": "callbacks: {{preflight: {{_target_: '${{evil._target_}}', command: touch MARK}}}}",
    "callback decoded": "callbacks: {{x: '${{oc.decode:${{text}}}}'}}",
    "callback created": "callbacks: {{x: '${{oc.create:${{evil}}}}'}}",
    "callback selected": "callbacks: {{x: '${{oc.select:evil}}'}}",
    "callback by a name of a name": "callbacks: {{x: '${{${{word}}}}'}}",
    "launcher": "launcher: {}",
    "launcher referred to": "launcher: ${{evil}}",
    "launcher's argument": "launcher: {{x: {}}}",
    "launcher's argument referred to": "launcher: {{x: '${{evil}}'}}",
    "sweeper": "sweeper: {}",
    "sweeper referred to": "sweeper: ${{evil}}",
    "sweeper's argument": "sweeper: {{max_batch_size: {}}}",
    "axis": "sweeper: {{params: {{seed: '${{evil}}'}}}}",
    "axes": "sweeper: {{params: '${{evils}}'}}",
}
LOGGING = {
    "handler called": "{handlers: {h: {(): os.system, command: touch MARK}}, root: {handlers: [h]}}",
    "handler's class": "{handlers: {h: {class: os.system, command: touch MARK}}, root: {handlers: [h]}}",
    "handler's class referred to": "{handlers: {h: {class: '${evil._target_}', command: touch MARK}}, root: {}}",
    "handler referred to": "{handlers: {h: '${handler}'}, root: {handlers: [h]}}",
    "all referred to": "${logs}",
    "handlers referred to": "{handlers: '${handlers}', root: {handlers: [h]}}",
    "handler decoded": "{handlers: {h: '${oc.decode:${text}}'}, root: {handlers: [h]}}",
    "formatter called": "{formatters: {f: {(): os.system, command: touch MARK}}, root: {}}",
    "formatter's class": "{formatters: {f: {class: torch.utils.collect_env.run, format: touch MARK}}, root: {}}",
    "filter called": "{filters: {f: {(): os.system, command: touch MARK}}, root: {}}",
    "file overwritten": "{handlers: {h: {class: logging.FileHandler, filename: MARK, mode: w}}, root: {handlers: [h]}}",
    "file appended to": "{handlers: {h: {class: logging.FileHandler, filename: MARK}}, root: {handlers: [h]}}",
    "file by a factory": "{handlers: {h: {(): logging.FileHandler, filename: MARK}}, root: {handlers: [h]}}",
    "file that rotates": "{handlers: {h: {class: logging.handlers.RotatingFileHandler, filename: MARK}}, root: {}}",
    "file by time": "{handlers: {h: {class: logging.handlers.TimedRotatingFileHandler, filename: MARK}}, root: {}}",
    "file watched": "{handlers: {h: {class: logging.handlers.WatchedFileHandler, filename: MARK}}, root: {}}",
    "queue": "{handlers: {h: {class: logging.handlers.QueueHandler, queue: {(): os.system, command: touch MARK}}},"
    " root: {handlers: [h]}}",
    "queue by name": "{handlers: {h: {class: logging.handlers.QueueHandler, queue: os.abort}}, root: {handlers: [h]}}",
    "listener": "{handlers: {h: {class: logging.handlers.QueueHandler, listener: os.abort}}, root: {handlers: [h]}}",
    "socket": "{handlers: {h: {class: logging.handlers.SocketHandler, host: localhost, port: 9}}, root: {}}",
    "memory": "{handlers: {h: {class: logging.handlers.MemoryHandler, capacity: 1, target: h}}, root: {}}",
    "stream imported": "{handlers: {h: {class: logging.StreamHandler, stream: 'ext://this.s'}}, root: {handlers: [h]}}",
    "level imported": "{handlers: {h: {class: logging.StreamHandler, level: 'ext://this.s'}}, root: {handlers: [h]}}",
    "text looked up": "{handlers: {h: {class: logging.StreamHandler, stream: 'cfg://root'}}, root: {handlers: [h]}}",
    "attribute set": "{handlers: {h: {class: logging.StreamHandler, .: {emit: 'ext://os.abort'}}}, root: {}}",
    "logger's filter": "{loggers: {a: {filters: [f]}}, filters: {f: {(): os.system, command: touch MARK}}, root: {}}",
}
# settings with which Hydra writes where it is told to, or loads what it is told to
SETTINGS = {
    "folder of settings": "output_subdir: ../../../.config",
    "folder of settings referred to": "output_subdir: ${folder}",
    "current folder": "job: {chdir: true}",
    "folder of a trial": "sweep: {subdir: ../../victim}",
    "folder of a trial, absolute": "sweep: {subdir: /tmp/victim}",
    "name of a job": "job: {name: ../../victim}",
    "library loaded": "job: {env_set: {LD_PRELOAD: MARK.so}}",
    "path of modules": "job: {env_set: {PYTHONPATH: MARK}}",
    "trust": "job: {env_set: {GEARSHIFT_TRUST: os}}",
    "trust referred to": "job: {env_set: {GEARSHIFT_TRUST: '${word}'}}",
    "variables": "job: {env_set: '${variables}'}",
    "words": "overrides: {hydra: ['hydra.job.env_set.GEARSHIFT_TRUST=os']}",
    "axis of Hydra's": "sweeper: {params: {hydra.job.env_set.GEARSHIFT_TRUST: os}}",
    "axis of Hydra's, added": "sweeper: {params: {+hydra.job.env_set.GEARSHIFT_TRUST: os}}",
    "plug-in": "launcher: {_target_: hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher,"
    " python: touch MARK;}",
    "sampler": "sweeper: {_target_: hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper,"
    " custom_search_space: os.system}",
}
TOP = """# @package _global_
# Evil
evil: {node}
evils: {{seed: {node}}}
handler: {{(): os.system, command: touch MARK}}
handlers: {{h: '${{handler}}'}}
logs: {{version: 1, handlers: '${{handlers}}', root: {{handlers: [h]}}}}
text: '{{_target_: os.system, command: touch MARK}}'
word: evil
folder: ../../../.config
variables: {{GEARSHIFT_TRUST: os}}
"""
# nodes of components: what a function or a class of a library could do
PARTS = {
    "model": [
        "{_target_: torch.utils.collect_env.run, command: touch MARK}",
        "{_target_: torch.hub.load, repo_or_dir: MARK, model: x, source: local}",
        "{_target_: torch.load, f: MARK, weights_only: false}",
        "{_target_: torch.jit.load, f: MARK}",
        "{_target_: torch.nn.modules.module.torch.os.system, command: touch MARK}",
        "{_target_: torch.nn.functional.handle_torch_function, public_api: x, relevant_args: [], x: 1}",
        "{_target_: torch.nn.utils.parametrize.type_before_parametrizations, module: x}",
        "{_target_: torch.nn.utils.memory_format.convert_conv2d_weight_memory_format, module: x, memory_format: y}",
        "{_target_: torch.nn.parallel.DataParallel, module: {_target_: torch.nn.ReLU}}",
        "{_target_: torch.nn.qat.Linear, in_features: 1, out_features: 1}",
        "{_target_: torch.optim.swa_utils.AveragedModel, model: {_target_: torch.nn.ReLU}}",
        "{_target_: torch.optim.SGD, params: []}",
        "{_target_: torchvision.models.get_model, name: resnet18}",
        "{_target_: torchvision.models.get_weight, name: x}",
        "{_target_: torchvision.models._api.get_model, name: resnet18}",
        "{_target_: torchvision.models.resnet.load_state_dict_from_url, url: 'file:MARK'}",
        "{_target_: torchvision.datasets.utils.extract_archive, from_path: MARK}",
        "{_target_: torchvision.io.write_file, filename: MARK, data: x}",
        "{_target_: torchvision.transforms.Lambda, lambd: x}",
        "{_target_: torchvision.ops.nms, boxes: x, scores: y, iou_threshold: 1}",
        "{_target_: timm.models.load_checkpoint, model: x, checkpoint_path: MARK}",
        "{_target_: timm.utils.misc.natural_key, string_: MARK}",
        "{_target_: kornia.core.external.LazyLoader, module_name: this}",
        "{_target_: pytorch_optimizer.load_optimizer, optimizer: this}",
        "{_target_: trainer.storage.files.write_atomic, path: MARK, content: x}",
        "{_target_: trainer.reporting.curves.draw_curves, metrics: [], path: MARK, title: x}",
        "{_target_: trainer.parallelism.parameter_server.ServerProcess}",
        "{_target_: trainer.parallelism.parameter_server.main}",
        "{_target_: trainer.data.photographs.caching.load, path: MARK}",
        "{_target_: trainer.data.torchvision_sets.MNIST, root: MARK}",
        "{_target_: trainer.app.main}",
        "{_target_: trainer.models.from_library.load, model: x, name: y, path: MARK, num_outputs: 1}",
        "{_target_: trainer.models.from_timm.from_timm, arguments: {checkpoint_path: MARK}}",
        "{_target_: trainer.models.from_timm.from_timm, name: 'local-dir:MARK'}",
        "{_target_: trainer.models.lenet.lenet, activation: {_target_: os.system, command: touch MARK}}",
        "{_target_: trainer.models.lenet.lenet, activation: [{_target_: os.system, command: touch MARK}]}",
        "{_target_: trainer.models.lenet.lenet, activation: {x: {_target_: os.system, command: touch MARK}}}",
        "{_target_: trainer.models.lenet.lenet, activation: '${evil}'}",
        "'${evil}'",
        "{_target_: '${evil._target_}', command: touch MARK}",
        "{_target_: '${oc.decode:os.system}', command: touch MARK}",
    ],
    "optimizer": [
        "{_target_: torch.nn.Linear, in_features: 1, out_features: 1}",
        "{_target_: torch.optim.lr_scheduler.LambdaLR, lr_lambda: x}",
        "{_target_: torch.optim.AdamW, lr: {_target_: os.system, command: touch MARK}}",
        "{_target_: torch.optim.optimizer.register_optimizer_step_pre_hook, hook: x}",
        "{_target_: trainer.optimizers.os.system, command: touch MARK}",
    ],
    "data": [
        "{_target_: torchvision.datasets.FakeData, size: 10}",
        "{_target_: trainer.data.FromDataset, train: {_target_: torchvision.datasets.FakeData}}",
        "{_target_: trainer.data.FromDataset, train: {_target_: os.listdir, path: MARK}}",
        "{_target_: trainer.data.FromDataset, train: {_target_: trainer.examples.map_style.Bars, n: '${evil}'}}",
        "{_target_: trainer.data.photographs.writing.write, path: MARK}",
        "{_target_: trainer.data.memory.cache_folder, given: MARK}",
        "{_target_: trainer.models.lenet.lenet}",
    ],
    "augmentation": [
        "{_target_: trainer.augmentation.Pipeline, x: {_target_: os.system, command: touch MARK}}",
        "{_target_: trainer.augmentation.Pipeline, x: {_target_: torch.utils.collect_env.run, command: touch MARK}}",
        "{_target_: trainer.augmentation.Pipeline, x: {_target_: trainer.parallelism.parameter_server.ServerProcess}}",
        "{x: {_target_: os.system, command: touch MARK}}",
        "{_target_: kornia.augmentation.RandomCrop}",
    ],
    "loss": [
        "{_target_: torch.nn.CrossEntropyLoss}",
        "{_target_: trainer.losses.CrossEntropy, base: {_target_: os.system, command: touch MARK}}",
        "{_target_: torch.nn.functional.cross_entropy, input: x, target: y}",
    ],
    "schedule": ["{_target_: trainer.schedules.Constant, x: {_target_: os.system, command: touch MARK}}"],
    "sampler": ["{_target_: torch.utils.data.RandomSampler, data_source: x}"],
    "initializer": ["{_target_: torch.nn.init.zeros_, tensor: x}"],
    "parallelism": ["{_target_: trainer.parallelism.parameter_server.ServerProcess}"],
    "diagnostics": ["{_target_: trainer.reporting.tensorboard.TensorBoard, folder: MARK}"],
    "preprocessing": ["{_target_: trainer.preprocessing.modules.torch.hub.load, repo_or_dir: MARK}"],
    "averaging": [
        "{_target_: torch.optim.swa_utils.AveragedModel, model: {_target_: torch.nn.ReLU}}",
        "{_target_: trainer.averaging.averaging.torch.hub.load, repo_or_dir: MARK}",
        "{_target_: trainer.averaging.Ema, half_life: {_target_: os.system, command: touch MARK}}",
    ],
    "regularizer": [
        "{_target_: torch.nn.utils.prune.CustomFromMask, mask: x}",
        "{_target_: trainer.regularizers.L2, coefficients: {_target_: os.system, command: touch MARK}}",
        "{_target_: trainer.regularizers.L2, coefficients: {'*': {_target_: os.system, command: touch MARK}}}",
    ],
}

# settings of the runner's own, which are no nodes
SETTINGS_OF_OURS = ("init_from", "prune", "parameter_groups", "every", "early_stopping", "name", "tags")
STUDIES = [
    "{_target_: os.system, command: touch MARK}",
    "{_target_: subprocess.call, args: [touch, MARK]}",
    "{_target_: torch.utils.collect_env.run, command: touch MARK}",
    "{_target_: trainer.studies.study.Path.touch, self: MARK}",
    "{_target_: trainer.studies.study.Path, x: MARK}",
    "{_target_: trainer.studies.driver.train, config: x, folder: MARK}",
    "{_target_: trainer.studies.driver.run_study, definition: x}",
    "{_target_: trainer.studies.driver.write_json, path: MARK, content: x}",
    "{_target_: trainer.studies.ledger.Ledger, folder: MARK}",
    "{_target_: trainer.studies.ledger.os.system, command: touch MARK}",
    "{_target_: trainer.studies.ledger.write_json, path: MARK, content: x}",
    "{_target_: trainer.studies.definition.build, node: {_target_: os.system, command: touch MARK}, where: x}",
    "{_target_: trainer.studies.definition.Definition, option: x}",
    "{_target_: trainer.studies.ensemble.Trained, folder: MARK}",
    "{_target_: trainer.studies.study.Member, name: ../../MARK, overrides: []}",
    "{_target_: trainer.models.lenet.lenet}",
    "{_target_: trainer.studies.KFold, folds: {_target_: os.system, command: touch MARK}}",
    "{_target_: trainer.studies.KFold, pool: {_target_: os.system, command: touch MARK}}",
    "{_target_: trainer.studies.LotteryTicket, scope: {_target_: os.system, command: touch MARK}}",
    "{_target_: trainer.studies.LotteryTicket, scope: [{_target_: os.system, command: touch MARK}]}",
]


def attacks() -> Iterator[Attack]:
    """Those by Hydra's own node, and some of those by components, which `PARTS` holds."""
    yield from _of_hydras_node()
    yield from _by_other_files()
    for group, nodes in PARTS.items():
        yield Attack(f"{group} by an option", {f"{group}/evil.yaml": f"# Evil\n{nodes[0]}\n"}, [f"{group}=evil"])


def parts() -> Iterator[tuple[str, str]]:
    """Group and node."""
    yield from ((group, node) for group, nodes in PARTS.items() for node in nodes)


def _of_hydras_node() -> Iterator[Attack]:
    def attack(name: str, node: str, entry: str) -> Attack:
        text = f"{TOP.format(node=node)}hydra:\n  {entry}\n"
        is_sweep = entry.startswith(("sweep", "launcher"))
        words = ["-m", "seed=1,2"] if is_sweep else []
        return Attack(name, {"experiment/evil.yaml": text}, [*words, "experiment=evil"], is_in_node=True)

    for number, (place, entry) in enumerate(PLACES.items()):
        others = [list(CALLS)[1 + (number + step) % (len(CALLS) - 1)] for step in range(2)]
        for kind in ("system", *others) if "{}" in entry else ("system", "torch"):
            yield attack(f"{place}: {kind}", CALLS[kind], entry.format(CALLS[kind]))
    for number, (name, node) in enumerate(LOGGING.items()):
        key = ("hydra_logging", "job_logging")[number % 2]
        yield attack(f"{key}: {name}", CALLS["system"], f"{key}: {node}")
    for name, entry in SETTINGS.items():
        yield attack(name, CALLS["system"], entry)


def _by_other_files() -> Iterator[Attack]:
    """By a package line, a primary configuration, an option of Hydra's, a path, and words that someone was told."""
    node = CALLS["system"]
    hydra = f"hydra:\n  callbacks: {{x: {node}}}\n"
    yield Attack("package", {"model/evil.yaml": f"# @package hydra.callbacks\nx: {node}\n"}, ["+model=evil"])
    yield Attack("primary", {"evil.yaml": f"defaults: [train, _self_]\n{hydra}"}, ["--config-name=evil"])
    yield Attack(
        "primary, referred to",
        {"evil.yaml": f"defaults: [train, _self_]\nevil: {{callbacks: {{x: {node}}}}}\nhydra: ${{evil}}\n"},
        ["--config-name=evil"],
    )
    for path in ("pkg://this", "file:///tmp", "pkg://torch.utils"):
        primary = f"defaults: [train, _self_]\nhydra: {{searchpath: ['{path}']}}\n"
        yield Attack(f"search path {path}", {"evil.yaml": primary}, ["--config-name=evil"])
    chooses = "# @package _global_\ndefaults: [override /hydra/callbacks: evil]\n"
    files = {"hydra/callbacks/evil.yaml": f"x: {node}\n", "experiment/evil.yaml": chooses}
    yield Attack("option of callbacks", files, ["experiment=evil"])
    for kind in ("launcher", "sweeper"):
        plugin = (
            "{_target_: hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher, python: touch MARK;}"
        )
        ours = f"hydra._internal.core_plugins.basic_{kind}.Basic{kind.title()}"
        inside = f"{{_target_: {ours}, max_batch_size: {node}}}"
        for number, text in enumerate((node, plugin, inside, f"{{_target_: {ours}, _args_: [{node}]}}")):
            files = {f"hydra/{kind}/evil.yaml": f"{text}\n"}
            yield Attack(f"option of {kind} {number}", files, ["-m", "seed=1,2", f"hydra/{kind}=evil"])
    for kind in ("job_logging", "hydra_logging"):
        files = {f"hydra/{kind}/evil.yaml": f"{LOGGING['handler called']}\n"}
        yield Attack(f"option of {kind}", files, [f"hydra/{kind}=evil"])
    yield Attack("option elsewhere", {"../elsewhere/evil.yaml": f"# @package _global_\n{hydra}"},
                 ["experiment=../../elsewhere/evil"])  # fmt: skip
    for command in (["--cfg", "job"], ["--cfg", "hydra"], ["--info", "all"], ["--hydra-help"], ["-m"], ["plan"]):
        yield Attack(f"under {' '.join(command)}", {"experiment/evil.yaml": f"# @package _global_\n{hydra}"},
                     [*command, "experiment=evil"])  # fmt: skip
    for word in (
        "+hydra.callbacks.x={_target_:os.system,command:'touch MARK'}",
        "+evil={_target_:os.system,command:'touch MARK'}",
        "hydra.job_logging={handlers:{h:{class:logging.FileHandler,filename:MARK,mode:w}},root:{handlers:[h]}}",
        "hydra.hydra_logging={handlers:{h:{'()':os.system,command:'touch MARK'}},root:{handlers:[h]}}",
        "hydra/hydra_logging=hydra_debug",
        "hydra.launcher={_target_:os.system}",
        "++hydra.callbacks={x:{_target_:os.system}}",
        "hydra={callbacks:{x:{_target_:os.system}}}",
        "model={_target_:os.system,command:'touch MARK'}",
        "model={_target_:torch.utils.collect_env.run,command:'touch MARK'}",
    ):
        yield Attack(f"typed {word[:40]}", {}, [word])

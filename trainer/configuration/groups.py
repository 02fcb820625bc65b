"""The table of the configuration's groups, in the order of `train.yaml`.

A new group needs a row here, a contract, and a folder of YAML files. Contracts are named, not imported, so that reading
the table does not import torch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """A group of options, of which a run has one.

    `contract` is the dotted name of the base class or protocol of its objects, `package` where ours are defined.
    `given` names constructor arguments that the trainer passes and that YAML must not set. `is_wired`: the assembly
    uses the object; all others are in `Blueprint.others`.
    """

    name: str
    contract: str
    package: str
    given: tuple[str, ...] = ()
    may_be_nothing: bool = False
    is_wired: bool = False


_ROWS = (
    Group("data", "trainer.data.facts.DataSet", "trainer.data", is_wired=True),
    Group("preprocessing", "trainer.contracts.Preprocessing", "trainer.preprocessing", is_wired=True),
    Group("sampler", "trainer.contracts.Sampler", "trainer.samplers", given=("batch_size",), is_wired=True),
    Group("augmentation", "trainer.contracts.Augmentation", "trainer.augmentation", may_be_nothing=True, is_wired=True),
    Group("model", "torch.nn.Module", "trainer.models", given=("input_shape", "num_outputs"), is_wired=True),
    Group(
        "initializer",
        "trainer.contracts.Initializer",
        "trainer.initializers",
        given=("input_shape",),
        may_be_nothing=True,
        is_wired=True,
    ),
    Group("loss", "trainer.contracts.Loss", "trainer.losses", is_wired=True),
    Group(
        "regularizer",
        "trainer.regularizers.regularizer.Regularizer",
        "trainer.regularizers",
        may_be_nothing=True,
        is_wired=True,
    ),
    Group("optimizer", "trainer.contracts.Optimizer", "trainer.optimizers", given=("params",), is_wired=True),
    Group(
        "schedule",
        "trainer.contracts.Schedule",
        "trainer.schedules",
        given=("steps_per_epoch", "total_steps", "directions"),
        is_wired=True,
    ),
    Group(
        "averaging",
        "trainer.averaging.averaging.Averaging",
        "trainer.averaging",
        given=("steps_per_epoch", "total_steps", "cycle_ends"),
        may_be_nothing=True,
        is_wired=True,
    ),
    Group("parallelism", "trainer.parallelism.strategy.Strategy", "trainer.parallelism", is_wired=True),
    Group("diagnostics", "trainer.contracts.Diagnostics", "trainer.diagnostics", may_be_nothing=True, is_wired=True),
)
GROUPS: dict[str, Group] = {group.name: group for group in _ROWS}

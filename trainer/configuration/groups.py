"""The groups of the configuration, in the order of `train.yaml`: the one table that whoever must know them reads.

A new group is a row here, a contract, and a folder of YAML. Light: contracts are named, not imported.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """A group of options, of which a run has one.

    `contract` is the dotted name of what is asked of its objects, `package` where ours are defined. `given` names
    what the trainer passes to a constructor that asks for it, and what YAML may therefore not set. `is_wired`:
    the assembly has a place of its own for the object; others are found in `Blueprint.others`.
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
    Group("initializer", "trainer.contracts.Initializer", "trainer.initializers", may_be_nothing=True, is_wired=True),
    Group("loss", "trainer.contracts.Loss", "trainer.losses", is_wired=True),
    Group("optimizer", "trainer.contracts.Optimizer", "trainer.optimizers", given=("params",), is_wired=True),
    Group(
        "schedule",
        "trainer.contracts.Schedule",
        "trainer.schedules",
        given=("steps_per_epoch", "total_steps"),
        is_wired=True,
    ),
    Group("parallelism", "trainer.parallelism.strategy.Strategy", "trainer.parallelism", is_wired=True),
    Group("diagnostics", "trainer.contracts.Diagnostics", "trainer.diagnostics", may_be_nothing=True, is_wired=True),
)
GROUPS: dict[str, Group] = {group.name: group for group in _ROWS}

"""A warning about batch norm whose statistics are those of few samples."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.base.chunks import chunk_sizes
from trainer.configuration.blueprint import Blueprint, micro_batch_size

# Wu & He 2018, table 2: ResNet-50's error is 23.6 % with 32 samples a worker, 24.8 % with 8, 27.3 % with 4
_FEW = 8


def few_samples(blueprint: Blueprint, model: nn.Module) -> str | None:
    """Return a warning if batch norm takes its statistics of fewer than 8 samples in a step, with what helps."""
    shards = blueprint.strategy.norm_shards
    found = _fewest(blueprint.batch_size, blueprint.micro_batch) // shards
    trained = (module for module in model.modules() if isinstance(module, _BatchNorm) and _is_trained(module))
    if found >= _FEW or next(trained, None) is None:
        return None
    counted = "1 sample" if found <= 1 else f"{found} samples"
    where = "" if shards == 1 else " of one rank"
    advice = _advice(blueprint, _FEW * shards)
    return f"batch norm: takes the statistics of {counted}{where} at a time, which are noisy below {_FEW}{advice}"


def _is_trained(module: nn.Module) -> bool:
    """Whether the module is not frozen, which would leave it in evaluation mode."""
    parameters = list(module.parameters())
    return not parameters or any(parameter.requires_grad for parameter in parameters)


def _fewest(batch_size: int, micro_batch: int) -> int:
    return min(chunk_sizes(batch_size, micro_batch))


def _advice(blueprint: Blueprint, needed: int) -> str:
    """Return the smallest change of one setting with which every micro-batch has enough samples, if there is one."""
    config, size = blueprint.config, blueprint.batch_size
    if isinstance(config["micro_batch"], int):
        for micro_batch in range(blueprint.micro_batch + 1, size + 1):
            if _fewest(size, micro_batch) >= needed:
                return f"; set micro_batch={micro_batch}"
    for larger in range(size + 1, blueprint.facts.num_train + 1):
        if _fewest(larger, micro_batch_size(config, larger)) >= needed:
            return f"; set batch_size={larger}"
    return ""

"""Where a model is cut into the stages of a pipeline."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from torch import nn

from trainer.contracts import pipeline_plan
from trainer.parallelism.sizes import layers_of


def work_of_children(model: nn.Module, input_shape: Sequence[int]) -> Mapping[str, int]:
    """Return the work of each child in a step, for one sample: multiply-adds, forward and backward.

    Counted on the meta device, so it is the same on every rank, machine and day. Empty for a model that cannot run
    there.
    """
    try:
        layers = layers_of(model, input_shape)
    except RuntimeError:
        return {}
    work: Counter[str] = Counter()
    for layer in layers:
        work[layer.name.partition(".")[0]] += layer.work_of_step
    return work


def cut(model: nn.Module, num_stages: int, work: Mapping[str, int]) -> list[list[str]]:
    """Return the names of each stage's children, minimizing the sum of squares of the stages' work.

    Of equal ones, those with the lowest sum of squares of their numbers of parameters. Every stage has parameters.
    Raises ValueError if the model's `pipeline_plan` is missing or too short.
    """
    plan = pipeline_plan(model)
    if plan is None:
        raise ValueError(
            f"parallelism=pipeline: {type(model).__name__} names no children at which a stage may begin; the model "
            "must be an nn.Sequential with the attribute pipeline_plan"
        )
    pieces = _pieces(model, plan)
    if num_stages > len(pieces):
        raise ValueError(
            f"parallelism.devices: {num_stages} stages cannot be cut from this model; it has {len(pieces)} pieces "
            f"with parameters, so at most {len(pieces)}"
        )
    work_before = [0, *accumulate(sum(work.get(name, 0) for name, _ in piece) for piece in pieces)]
    sizes_before = [0, *accumulate(sum(size for _, size in piece) for piece in pieces)]
    # best[n]: lowest cost of the first n pieces in as many stages as iterations so far, and the ends of these stages
    best: dict[int, tuple[int, int, list[int]]] = {0: (0, 0, [0])}
    for _ in range(num_stages):
        best = {
            end: min((cost + (work_before[end] - work_before[start]) ** 2,
                      size + (sizes_before[end] - sizes_before[start]) ** 2, [*ends, end])
                     for start, (cost, size, ends) in best.items() if start < end)
            for end in range(1, len(pieces) + 1)
            if any(start < end for start in best)
        }  # fmt: skip
    ends = best[len(pieces)][2]
    return [[name for piece in pieces[a:b] for name, _ in piece] for a, b in pairwise(ends)]


def _pieces(model: nn.Module, plan: Sequence[str]) -> list[list[tuple[str, int]]]:
    """Return groups of children that must be in the same stage, each child with its number of parameters.

    Every group has parameters.
    """
    pieces: list[list[tuple[str, int]]] = [[]]
    for name, child in model.named_children():
        if name in plan and any(size for _, size in pieces[-1]):
            pieces.append([])
        pieces[-1].append((name, sum(p.numel() for p in child.parameters())))
    if len(pieces) > 1 and not any(size for _, size in pieces[-1]):
        rest = pieces.pop()
        pieces[-1] += rest
    return pieces

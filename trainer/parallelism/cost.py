"""Predicted cost of each strategy: bytes sent, memory per rank, and the best possible speed-up.

Sizes come from the model on the meta device. In a ring of n ranks, for a tensor of B bytes, each rank sends

    all-reduce                     2 (n - 1) / n * B   in 2 (n - 1) messages
    all-gather, reduce-scatter       (n - 1) / n * B   in    n - 1  messages

(Patarasuk & Yuan 2009). Single numbers are not counted: the loss, the gradient norm, the flag that a rank wants to
stop. Sources: CUHK ELEG 5491, "Data parallelism", "Model parallelism", "Hybrid data and model parallelism".
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from trainer.parallelism.sizes import Cost, Layer, Sent, Step, all_gather, all_reduce
from trainer.parallelism.sizes import layers_of as layers_of


def single(step: Step) -> Cost:
    return Cost()


def data_parallel(step: Step, ranks: int, synchronized: bool = True) -> Cost:
    """Gradients are summed once a step; synchronized batch norm communicates in every micro-batch (`batch_norm`)."""
    sent = {"gradients": all_reduce(step.value_bytes * step.parameters, ranks)}
    if synchronized:
        sent["batch norm"] = batch_norm(step, ranks)
    return Cost(_present(sent), activations=_largest_fraction(step, ranks), speed_up=_data_speed_up(step, ranks))


def fully_sharded(
    step: Step,
    ranks: int,
    shard_size: int | None = None,
    synchronized: bool = True,
    *,
    param_bytes: int | None = None,
    reduce_bytes: int | None = None,
) -> Cost:
    """Each rank keeps 1/n of weights, gradients and optimizer state (FSDP; Rajbhandari et al. 2020, ZeRO-3).

    Weights are gathered twice in every micro-batch, forward and backward; gradients are reduce-scattered. Memory
    includes, beside the rank's own shards, the largest top-level module twice, as a whole and in the buffer of the
    message, for weights and for gradients; and whole gradients if there are several micro-batches.
    `param_bytes` and `reduce_bytes` are the sizes of an element as weights are gathered (except those of batch norm)
    and as gradients are summed. With `shard_size`, n is that number, and each of the ranks / n copies of the model adds
    its gradients to those of the others.
    """
    sharded = ranks if shard_size is None else shard_size
    of_norms = sum(layer.parameters for layer in step.layers if layer.channels)
    message = (param_bytes or step.value_bytes) * (step.parameters - of_norms) + step.value_bytes * of_norms
    gradients = (reduce_bytes or step.value_bytes) * step.parameters
    sent = {
        "weights": all_gather(message, sharded).times(2 * step.parts),
        "gradients": all_gather(gradients, sharded).plus(all_reduce(gradients / sharded, ranks // sharded)),
    }
    if synchronized:
        sent["batch norm"] = batch_norm(step, ranks)
    fraction = 1 / sharded
    units: Counter[str] = Counter()
    for layer in step.layers:
        units[layer.name.partition(".")[0]] += layer.parameters
    gathered = 2 * max(units.values(), default=0) / max(1, step.parameters) if sharded > 1 else 0.0
    return Cost(
        _present(sent), weights=fraction + gathered, gradients=gathered + (1.0 if step.parts > 1 else fraction),
        optimizer=fraction, activations=_largest_fraction(step, ranks), speed_up=_data_speed_up(step, ranks),
    )  # fmt: skip


def tensor_parallel(step: Step, ranks: int) -> Cost:
    """Layers in the plan are split over all ranks, which all have the whole batch; activations are summed."""
    return hybrid(step, 1, ranks)


def hybrid(step: Step, data: int, model: int, synchronized: bool = True) -> Cost:
    """`data` groups of `model` ranks: layers are split within a group, samples over the groups (CUHK ELEG 5491)."""
    held = sum(_held(layer, model) for layer in step.layers)
    fraction = held / max(1, step.parameters)
    sent = {
        "activations": _activations_sent(step, step.layers, _largest_fraction(step, data), model),
        "gradients": all_reduce(step.value_bytes * held, data),
    }
    if synchronized:
        sent["batch norm"] = batch_norm(step, data, model)
    return Cost(
        _present(sent), weights=fraction, gradients=fraction, optimizer=fraction,
        activations=_largest_fraction(step, data) * _kept_fraction(step.layers, model),
        speed_up=_data_speed_up(step, data) * _tensor_speed_up(step.layers, model),
    )  # fmt: skip


def weird_trick(step: Step, ranks: int, synchronized: bool = True) -> Cost:
    """Convolutions split the batch, fully connected layers are split themselves (Krizhevsky 2014; Optimization
    (Part 2), "Distributed Training").

    At the border, before the first fully connected layer, the features of all samples are gathered. After the last
    layer every rank keeps its samples' outputs, whose gradients are gathered in the backward pass. Gradients of layers
    before the border are summed over all ranks; those of layers after it are complete.
    """
    before, after = _border(step.layers)
    convolutions = sum(layer.parameters for layer in before)
    fraction = (convolutions + sum(_held(layer, ranks) for layer in after)) / max(1, step.parameters)
    passing = (after[0].inputs + after[-1].outputs) if after else 0
    sent = {
        "gradients": all_reduce(step.value_bytes * convolutions, ranks),
        "border": all_gather(step.activation_bytes * step.batch_size * passing, ranks),
        "activations": _activations_sent(step, after, 1.0, ranks),
    }
    if synchronized:
        sent["batch norm"] = batch_norm(step, ranks, layers=before)
    return Cost(
        _present(sent), weights=fraction, gradients=fraction, optimizer=fraction,
        activations=_weird_activations(step, before, after, ranks),
        speed_up=_weird_speed_up(step, before, after, ranks),
    )  # fmt: skip


def pipeline(step: Step, stages: Sequence[Sequence[str]], micro_batches: int, in_flight: int | None = None) -> Cost:
    """Each rank has one stage, given by the names of its top-level modules (Huang et al. 2019, GPipe).

    A rank sends activations to the next stage and gradients to the previous one; the last rank broadcasts the outputs.
    A rank is idle in (s - 1) of (m + s - 1) turns, and every turn takes as long as the slowest of the s stages:
    speed-up = work / slowest stage's work * m / (m + s - 1) with m micro-batches. A rank stores the activations of
    `in_flight` micro-batches at once (None: of all).
    """
    split = [[layer for layer in step.layers if layer.name.partition(".")[0] in stage] for stage in stages]
    cuts = [0, *(stage[0].inputs for stage in split[1:]), 0]
    busiest = max(a + b for a, b in itertools.pairwise(cuts))
    per_number = step.activation_bytes * step.batch_size
    # broadcast along a binary tree
    copies = math.ceil(math.log2(len(stages)))
    sent = {
        "activations": Sent(per_number * busiest, 2 * micro_batches * step.parts if busiest else 0),
        "outputs": Sent(per_number * step.layers[-1].outputs * copies, copies * step.parts),
    }
    held = max(sum(layer.parameters for layer in stage) for stage in split) / max(1, step.parameters)
    kept = max(sum(layer.inputs for layer in stage) for stage in split) / max(1, _inputs(step.layers))
    work = sum(layer.work_of_step for layer in step.layers)
    slowest = max(sum(layer.work_of_step for layer in stage) for stage in split)
    filled = micro_batches / (micro_batches + len(stages) - 1)
    at_once = 1.0 if in_flight is None else min(in_flight, micro_batches) / micro_batches
    return Cost(
        _present(sent), weights=held, gradients=held, optimizer=held, activations=kept * at_once,
        speed_up=filled * (work / slowest if slowest else 1.0),
    )  # fmt: skip


def local_sgd(step: Step, ranks: int, period: int) -> Cost:
    """Every `period` steps the weights (and statistics of batch norm) are averaged (Stich 2018)."""
    averaged = step.parameters + sum(2 * layer.channels for layer in step.layers)
    sent = {"weights": all_reduce(step.value_bytes * averaged, ranks).times(1 / period)}
    return Cost(
        _present(sent), activations=_largest_fraction(step, ranks), speed_up=_data_speed_up(step, ranks),
        collected=1 + ranks,  # the mean, and the state of every rank
    )  # fmt: skip


def downpour(step: Step, workers: int, period: int) -> Cost:
    """Every `period` steps a worker pushes its gradients to the servers and fetches the weights (Dean et al. 2012).

    The optimizer state is on the servers. Workers do not wait for one another: the speed-up is in samples per second.
    """
    exchange = Sent(step.value_bytes * step.parameters, 1).times(1 / period)
    return Cost(
        {"gradients": exchange, "fetched weights": exchange},
        gradients=2.0 if period > 1 else 1.0,
        optimizer=0.0,
        activations=_largest_fraction(step, workers),
        speed_up=_data_speed_up(step, workers),
    )


def batch_norm(step: Step, data: int, model: int = 1, layers: Sequence[Layer] | None = None) -> Sent:
    """Communication of synchronized batch norm.

    In every micro-batch, each rank's mean, squares and count (2C + 1 numbers) are gathered in the forward pass, and two
    sums (2C) are exchanged in the backward pass. Statistics of channels that are split over `model` ranks are not
    exchanged between these.
    """
    total = Sent()
    for layer in step.layers if layers is None else layers:
        if layer.channels:
            channels = layer.channels / (model if layer.plan == "split" else 1)
            total = total.plus(all_gather(step.value_bytes * data * (2 * channels + 1), data))
            total = total.plus(all_reduce(step.value_bytes * 2 * channels, data))
    return total.times(step.parts)


# --- shards -----------------------------------------------------------------------------------------------


def _present(sent: dict[str, Sent]) -> dict[str, Sent]:
    return {name: value for name, value in sent.items() if value.bytes}


def _largest_fraction(step: Step, ranks: int) -> float:
    """Fraction of the batch on the rank with the most samples."""
    return -(-step.batch_size // ranks) / step.batch_size


def _data_speed_up(step: Step, ranks: int) -> float:
    return 1 / _largest_fraction(step, ranks)


def _held(layer: Layer, ranks: int) -> float:
    """Number of a layer's parameters on one rank; only the bias of a row layer is whole."""
    if layer.plan == "row":
        return layer.weights / ranks + layer.others
    return layer.parameters / ranks if layer.plan else layer.parameters


def _split_inputs(layers: Sequence[Layer]) -> list[bool]:
    """Whether each layer's input is split by channels, as it is from a column layer to the next row layer."""
    found, is_split = [], False
    for layer in layers:
        if layer.plan in ("column", "gather", "cross"):
            is_split = False
        found.append(is_split)
        if layer.plan in ("column", "cross", "group"):
            is_split = True
        elif layer.plan in ("row", "gather"):
            is_split = False
    return found


def _activations_sent(step: Step, layers: Sequence[Layer], samples: float, ranks: int) -> Sent:
    """Communication of split layers: sums of a row layer's output, and of the gradient at a column layer's input.

    For a `cross` layer, the gradients of gathered inputs are summed; a reduce-scatter would send half as much, but
    gloo does not support it for unequal sizes.
    """
    total = Sent()
    for layer in layers:
        inputs, outputs = (
            step.activation_bytes * samples * step.batch_size * size for size in (layer.inputs, layer.outputs)
        )
        if layer.plan == "row":
            total = total.plus(all_reduce(outputs, ranks))
        if layer.plan == "gather":
            total = total.plus(all_gather(outputs, ranks))
        if layer.plan in ("column", "gather") and layer.needs_gradient:
            total = total.plus(all_reduce(inputs, ranks))
        if layer.plan == "cross":
            total = total.plus(all_gather(inputs, ranks)).plus(all_reduce(inputs, ranks))
    return total


def _inputs(layers: Sequence[Layer]) -> int:
    """Numbers stored for the backward pass of a sample: every layer's input."""
    return sum(layer.inputs for layer in layers)


def _kept_fraction(layers: Sequence[Layer], ranks: int) -> float:
    """Fraction of the layers' inputs that a rank stores."""
    split = _split_inputs(layers)
    kept = sum(layer.inputs / (ranks if is_split else 1) for layer, is_split in zip(layers, split, strict=True))
    return kept / max(1, _inputs(layers))


def _tensor_speed_up(layers: Sequence[Layer], ranks: int) -> float:
    """Speed-up by splitting layers; layers that are not split are computed by every rank."""
    work = sum(layer.work for layer in layers)
    own_work = sum(layer.work / (ranks if layer.plan else 1) for layer in layers)
    return work / own_work if own_work else 1.0


def _border(layers: Sequence[Layer]) -> tuple[list[Layer], list[Layer]]:
    """Split the layers before the model's first fully connected layer, whose input is whole; none before it is
    split over ranks."""
    first = next((i for i, layer in enumerate(layers) if layer.is_linear and "." not in layer.name), len(layers))
    before = [replace(layer, plan="") for layer in layers[:first]]
    after = list(layers[first:])
    if after and after[0].plan == "cross":
        after[0] = replace(after[0], plan="column")
    return before, after


def _weird_activations(step: Step, before: Sequence[Layer], after: Sequence[Layer], ranks: int) -> float:
    kept = _inputs(before) * _largest_fraction(step, ranks) + _inputs(after) * _kept_fraction(after, ranks)
    return kept / max(1, _inputs(step.layers))


def _weird_speed_up(step: Step, before: Sequence[Layer], after: Sequence[Layer], ranks: int) -> float:
    """Speed-up by Amdahl's law over the two groups of layers."""
    first, second = (sum(layer.work for layer in layers) for layers in (before, after))
    own_work = first * _largest_fraction(step, ranks) + second / _tensor_speed_up(after, ranks)
    return step.work / own_work if own_work else 1.0

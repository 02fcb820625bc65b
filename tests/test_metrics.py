import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from trainer.losses import CrossEntropy
from trainer.metrics import SUMS, Meter, available
from trainer.reporting.tables import without_repetition


def batches(n: int, classes: int = 10) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 9, (n,), generator=generator).tolist()
    return [
        (torch.randn(b, classes, generator=generator), torch.randint(0, classes, (b,), generator=generator))
        for b in sizes
    ]


def test_means_are_scikit_learn_s() -> None:
    meter = Meter(available(("accuracy", "accuracy_top5"), 11))
    seen = batches(100)
    for outputs, targets in seen:
        meter.add(outputs.sum(), outputs, targets)
    outputs, targets = torch.cat([o for o, _ in seen]), torch.cat([t for _, t in seen])
    values = meter.read()
    assert values["accuracy"] == accuracy_score(targets, outputs.argmax(1))
    assert values["accuracy_top5"] == top_k_accuracy_score(targets, outputs, k=5, labels=range(10))
    assert values["loss"] == pytest.approx(float(outputs.double().sum()) / len(targets))
    assert meter.read() == {}


@pytest.mark.parametrize(("num_classes", "has_top5"), [(2, False), (5, False), (10, False), (11, True), (1000, True)])
def test_top_5_is_omitted_for_up_to_ten_classes(num_classes: int, has_top5: bool) -> None:
    assert ("accuracy_top5" in available(("accuracy", "accuracy_top5"), num_classes)) == has_top5


@pytest.mark.parametrize("base", ["e", 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_scikit_learn_s_whatever_the_loss_adds(smoothing: float, base: str | int) -> None:
    loss = CrossEntropy(smoothing, base)
    meter = Meter(available(loss.metrics["classification"], 10))
    seen = batches(40)
    for outputs, targets in seen:
        meter.add(loss(outputs, targets), outputs, targets)
    outputs, targets = torch.cat([o for o, _ in seen]), torch.cat([t for _, t in seen])
    values = meter.read()
    assert list(values) == ["loss", "accuracy", "cross_entropy"]
    assert values["cross_entropy"] == pytest.approx(
        log_loss(targets, outputs.double().softmax(1), labels=range(10)), rel=1e-5
    )
    shown = without_repetition({f"val/{name}": value for name, value in values.items()})
    assert ("val/cross_entropy" in shown) == (smoothing > 0 or base == 2)


def test_a_repeated_cross_entropy_is_shown_if_it_is_monitored() -> None:
    values = {"val/loss": 0.25, "val/cross_entropy": 0.250001, "test/loss": 0.5, "test/cross_entropy": 0.500001}
    assert list(without_repetition(values)) == ["val/loss", "test/loss"]
    assert list(without_repetition(values, keep="val/cross_entropy")) == ["val/loss", "val/cross_entropy", "test/loss"]


def test_absolute_error_is_the_mean_over_outputs_and_samples() -> None:
    meter = Meter({"mae": SUMS["mae"]})
    for outputs, _ in batches(40, classes=3):
        meter.add(torch.zeros(()), outputs, torch.ones_like(outputs))
    whole = torch.cat([o for o, _ in batches(40, classes=3)])
    assert meter.read()["mae"] == pytest.approx(float((whole - 1).abs().mean()))


@pytest.mark.parametrize("cut", [1, 31, 32, 33, 70])
def test_an_interruption_leaves_no_trace_in_the_last_bit(cut: int) -> None:
    sums = available(("accuracy",), 10) | {"mae": lambda o, t: (o[:, 0] - t).abs().sum()}
    whole, first, second = Meter(sums), Meter(sums), Meter(sums)
    for index, (outputs, targets) in enumerate(batches(100)):
        if index == cut:
            second.load_state_dict([first.state_dict()], 0, 1, torch.device("cpu"))
        whole.add(outputs.sum(), outputs, targets)
        (first if index < cut else second).add(outputs.sum(), outputs, targets)
    assert second.read() == whole.read()

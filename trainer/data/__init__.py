"""Data sets: what a run reads, as whole uint8 tensors cut into training, validation and test parts."""

from trainer.data.digits import Digits
from trainer.data.facts import DataFacts, DataSet, Part, Splits
from trainer.data.torchvision_sets import CIFAR10, CIFAR100, MNIST, FashionMNIST

__all__ = ["CIFAR10", "CIFAR100", "MNIST", "DataFacts", "DataSet", "Digits", "FashionMNIST", "Part", "Splits"]

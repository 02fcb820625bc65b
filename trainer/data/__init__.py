"""Data sets with training, validation and test splits: uint8 tensors, or photographs in files."""

from trainer.data.digits import Digits
from trainer.data.facts import DataFacts, DataSet, Part, Splits
from trainer.data.features import Blobs, LinearRegression
from trainer.data.from_dataset import FromDataset
from trainer.data.image_folder import ImageFolder
from trainer.data.photographs.reading import Photographs
from trainer.data.synthetic import Shapes
from trainer.data.torchvision_sets import CIFAR10, CIFAR100, MNIST, FashionMNIST

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Blobs",
    "DataFacts",
    "DataSet",
    "Digits",
    "FashionMNIST",
    "FromDataset",
    "ImageFolder",
    "LinearRegression",
    "Part",
    "Photographs",
    "Shapes",
    "Splits",
]

"""Data sets of spatio-temporal prediction: the benchmarks', and your own videos."""

from ._base import VideoDataset
from .arrays import ArrayVideos
from .catalogue import DATASETS, open_dataset
from .kth import KTH
from .loading import make_loader
from .moving_mnist import FixedMovingMNIST, MovingMNIST, load_digits, load_mnist_images, load_moving_mnist_test
from .taxibj import TaxiBJ
from .videos import VideoFolder

__all__ = [
    "DATASETS",
    "KTH",
    "ArrayVideos",
    "FixedMovingMNIST",
    "MovingMNIST",
    "TaxiBJ",
    "VideoDataset",
    "VideoFolder",
    "load_digits",
    "load_mnist_images",
    "load_moving_mnist_test",
    "make_loader",
    "open_dataset",
]

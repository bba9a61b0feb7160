"""Data sets of the spatio-temporal prediction benchmarks."""

from .moving_mnist import MovingMNIST, load_digits, load_moving_mnist_test

__all__ = ["MovingMNIST", "load_digits", "load_moving_mnist_test"]

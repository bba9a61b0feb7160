"""The learning rate of a step."""

from __future__ import annotations

import math

from .config import Config, OptimizerConfig


def scale_of_batch(optimizer: OptimizerConfig, batch_size: int) -> float:
    """What ``optimizer.lr_scaling`` multiplies the learning rates by, for this batch."""
    ratio = batch_size / optimizer.lr_batch_size
    return {"none": 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}[optimizer.lr_scaling]


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Of optimiser step ``step``, from 0: a line up to ``lr``, then the cosine down to ``min_lr``.

    The cosine runs over all epochs, those of the warm-up included, as in the authors' scheduler (timm's).
    """
    o = config.optimizer
    epoch = step / steps_per_epoch if o.schedule_by == "step" else float(step // steps_per_epoch)
    if epoch < o.warm_up_epochs:
        rate = o.warm_up_lr + (o.lr - o.warm_up_lr) * epoch / o.warm_up_epochs
    elif o.schedule == "constant":
        rate = o.lr
    else:
        progress = min(1.0, epoch / config.training.epochs)
        rate = o.min_lr + 0.5 * (o.lr - o.min_lr) * (1 + math.cos(math.pi * progress))
    return rate * scale_of_batch(o, config.training.batch_size)

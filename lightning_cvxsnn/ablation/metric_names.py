"""What the name of a metric tells."""

import re
from typing import Literal

_LARGE = {
    "acc",
    "accuracy",
    "auc",
    "auroc",
    "ap",
    "map",
    "f1",
    "iou",
    "precision",
    "recall",
    "score",
    "top1",
    "top5",
    "r2",
}
_SMALL = {"bce", "brier", "ce", "cer", "divergence", "ece", "entropy", "err", "gap", "kl", "mape", "nll", "objective"}
_SMALL |= {"perplexity", "ppl", "smape", "wer", "xent"}
_ENDS = ("loss", "error", "mse", "mae")  # of words, such as those of rmse and testloss


def words_of(metric: str) -> list[str]:
    """The words of a metric's name.

    Example:
        >>> words_of("val/rightAnswers_top5")
        ['val', 'right', 'answers', 'top5']
    """
    return re.findall("[a-z0-9]+", re.sub("([a-z0-9])([A-Z])", r"\1 \2", metric).lower())


def better_mode(metric: str) -> Literal["min", "max"]:
    """Whether the least or the largest value of a metric is best: the least of a loss or an error, by its name.

    Example:
        >>> better_mode("val_nll"), better_mode("val/rmse"), better_mode("val_loss_free_acc"), better_mode("BLEU")
        ('min', 'min', 'max', 'max')
    """
    words = words_of(metric)
    small = any(word in _SMALL or word.endswith(_ENDS) for word in words)
    return "min" if small and not _LARGE.intersection(words) else "max"

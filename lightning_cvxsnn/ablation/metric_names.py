"""What the name of a metric tells."""

import re
from typing import Literal

_LARGE = {"acc", "accuracy", "auc", "auroc", "ap", "map", "f", "iou", "precision", "recall", "score", "top", "r"}
_SMALL = {"bce", "ce", "cer", "divergence", "ece", "entropy", "err", "gap", "kl", "mape", "nll", "objective"}
_SMALL |= {"perplexity", "ppl", "smape", "wer", "xent"}
_ENDS = ("loss", "losse", "error", "mse", "mae")  # of words, such as those of rmse and testloss, without a plural's s


def words_of(metric: str) -> list[str]:
    """The words of a metric's name.

    Example:
        >>> words_of("val/rightAnswers_top5")
        ['val', 'right', 'answers', 'top5']
    """
    return re.findall("[a-z0-9]+", re.sub("([a-z0-9])([A-Z])", r"\1 \2", metric).lower())


def better_mode(metric: str) -> Literal["min", "max"]:
    """Whether the least or the largest value of a metric is best: the least of a loss or an error, by its name.

    The last word that tells decides; without one, the largest is best.

    Example:
        >>> better_mode("val_nll"), better_mode("top5_errors"), better_mode("val_loss_free_acc"), better_mode("BLEU")
        ('min', 'min', 'max', 'max')
    """
    if "brier" in metric.lower():
        return "min"
    for word in reversed(words_of(metric)):
        stem = word.rstrip("0123456789")
        single = stem.removesuffix("s") if not stem.endswith("loss") else stem
        if single in _SMALL or single.endswith(_ENDS):
            return "min"
        if single in _LARGE:
            return "max"
    return "max"

"""What the name of a metric tells."""

from typing import Literal


def better_mode(metric: str) -> Literal["min", "max"]:
    """Whether the least or the largest value of a metric is best: the least of a loss or an error, by its name."""
    words = ("loss", "error", "mse", "mae", "gap", "objective", "perplexity")
    return "min" if any(word in metric.lower() for word in words) else "max"

"""What the name of a metric tells."""


def smaller_is_better(metric: str) -> bool:
    """Whether a metric of this name is a loss or an error."""
    return any(word in metric.lower() for word in ("loss", "error", "mse", "mae", "gap", "objective", "perplexity"))

"""Networks and data modules that are ready to train: the demonstration's and the paper's."""

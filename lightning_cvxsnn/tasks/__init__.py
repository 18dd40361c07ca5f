"""Networks and data modules that are ready to train: those of the demonstration and of the paper."""

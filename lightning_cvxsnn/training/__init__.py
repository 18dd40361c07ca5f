"""The callback, and what it asks of a Trainer."""

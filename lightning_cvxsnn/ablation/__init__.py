"""Ablations of methods, tasks and settings: run folders read, compared, and written as one report."""

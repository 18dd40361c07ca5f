"""Ablations: a sweep of methods, tasks, settings and seeds from one YAML file, each cell a process of its own."""

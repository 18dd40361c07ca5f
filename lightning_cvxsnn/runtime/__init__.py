"""The machine a computation runs on: ranks, work counted in multiply-adds, free memory, progress bars."""

"""One reconstruction of a network: prepare, capture, solve, judge, write. When, and from what on, is policy."""

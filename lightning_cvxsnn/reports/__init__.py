"""What a solve found and did: the report, warnings derived from it, a diagnosis, figures."""

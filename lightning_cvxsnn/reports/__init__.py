"""What a solve found and did, for people: the report, advice read off it, figures."""

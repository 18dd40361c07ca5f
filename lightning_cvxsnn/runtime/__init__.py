"""What any computation here needs of its surroundings: ranks, work counted, memory left, progress shown."""

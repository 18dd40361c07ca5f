"""What any computation here needs of the machine: ranks, work counted, memory left, progress shown."""

"""What comes to a server: requests, their arrivals, lengths and predictions; workloads and traces."""

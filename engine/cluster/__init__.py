"""Several servers and a router: which replica gets a request when it arrives."""

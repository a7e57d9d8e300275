"""A fleet of servers behind a router as an environment: which of them gets the request that arrives?"""

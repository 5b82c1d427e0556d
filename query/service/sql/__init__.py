"""SQL of the service, run in a child process that holds nothing but the tables."""

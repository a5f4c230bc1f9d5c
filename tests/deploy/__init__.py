"""What deploys the service, read by the tools that will read it."""

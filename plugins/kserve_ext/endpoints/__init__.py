"""What serves requests: REST, gRPC, and worker processes."""

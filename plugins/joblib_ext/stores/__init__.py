"""Where entries stand: a file system that machines share, and a node's own copies."""

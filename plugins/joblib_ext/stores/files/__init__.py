"""A store on a file system that several machines share."""

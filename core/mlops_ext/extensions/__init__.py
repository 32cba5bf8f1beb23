"""Find extensions by their entry points, and switch their patches on."""

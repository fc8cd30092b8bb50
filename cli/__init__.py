"""The `vssl` command: options, one call, the printed result."""

"""What a project has to offer before a server can be made in it."""

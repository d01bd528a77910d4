"""What things are: desired state, how to read it, how to change it; one kind a file, no Prefect."""

"""Ring 3: the rehearsal cloud itself, by clients nobody here wrote."""

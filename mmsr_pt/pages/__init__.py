"""Pages that stand in one file, pictures too: the report of a run, recommendations as a contact sheet."""

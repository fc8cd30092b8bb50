"""Features of videos as a table: made, searched, clustered, drawn."""

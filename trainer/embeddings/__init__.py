"""Tables of features of videos: made, searched, clustered, drawn."""

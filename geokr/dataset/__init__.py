"""The data set on disk: layout, stores of tiles and labels, index and splits."""

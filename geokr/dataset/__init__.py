"""The data set on disk: its layout, its stores of tiles and labels, its index and splits."""

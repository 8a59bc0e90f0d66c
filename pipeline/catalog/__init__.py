"""The catalog of scenes, its STAC forms, and the list of refused scenes."""

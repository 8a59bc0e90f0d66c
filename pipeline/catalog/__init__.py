"""The table of scenes, its STAC forms, and what was refused."""

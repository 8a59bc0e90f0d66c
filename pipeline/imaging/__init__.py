"""The pixels of a grid: orthorectification, pansharpening, radiometry and tile quality."""

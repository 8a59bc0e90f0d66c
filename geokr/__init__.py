"""GeoKR: geographical knowledge as supervision for remote-sensing encoders.

This package is the library: land-cover knowledge, the data set on disk, and pre-training. It never imports
`pipeline`. Its training side needs only torch, timm, numpy, pyarrow and tensorstore.
"""

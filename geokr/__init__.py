"""GeoKR: geographical knowledge as supervision for remote-sensing encoders.

The library half: land-cover knowledge, the data set on disk, and pre-training. It never imports
`pipeline`, and its training side needs only torch, timm, numpy, pyarrow and tensorstore.
"""

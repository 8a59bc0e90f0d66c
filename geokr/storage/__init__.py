"""Files, inputs and rasters at any address: a disk, `s3://` or HTTP."""

"""Files, inputs and rasters at any address: on a disk, `s3://` or HTTP."""

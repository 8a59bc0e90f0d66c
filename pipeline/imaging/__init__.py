"""The pixels of a grid: orthorectified, sharpened, calibrated, judged."""

"""Heights of the ground: a digital elevation model, or one height for a whole scene."""

from dataclasses import dataclass

import numpy as np
import rasterio
from rasterio.windows import Window

from geokr.crs import transformer
from pipeline.scene import SceneError
from pipeline.sensor import Floats


@dataclass(frozen=True, slots=True)
class Terrain:
    """Ellipsoidal heights, m."""

    dem: str | None
    """A raster that GDAL opens, heights in metres above the ellipsoid; None for a flat ground."""
    height: float
    """Height where there is no DEM, or where it has a hole or ends, m."""

    def heights(self, lon: Floats, lat: Floats) -> Floats:
        """Height at each point, float64, of the inputs' shape; bilinear between the centres of DEM cells.

        Raises SceneError naming the DEM where it does not lie on a map.
        """
        if self.dem is None:
            return np.full(np.shape(lon), self.height)
        with rasterio.open(self.dem) as source:
            if source.crs is None:
                raise SceneError(f"{self.dem}: the heights have no coordinate system")
            x, y = transformer("EPSG:4326", source.crs.to_wkt()).transform(lon, lat)
            inverse = ~source.transform
            with np.errstate(invalid="ignore"):  # not finite where the DEM's CRS ends
                col, row = inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f
            inside = (col >= 0) & (col <= source.width) & (row >= 0) & (row <= source.height)
            if not inside.any():
                return np.full(np.shape(lon), self.height)
            c0, r0 = max(0, int(col[inside].min() - 1)), max(0, int(row[inside].min() - 1))
            c1 = min(source.width, int(col[inside].max() + 2))
            r1 = min(source.height, int(row[inside].max() + 2))
            cells = source.read(1, window=Window(c0, r0, c1 - c0, r1 - r0), masked=True)
        values = cells.astype(np.float64).filled(self.height)
        values[~np.isfinite(values)] = self.height
        # A cell's height stands at its centre; past the outermost centres the border cell goes on.
        u, v = np.clip(col - c0 - 0.5, 0, values.shape[1] - 1), np.clip(row - r0 - 0.5, 0, values.shape[0] - 1)
        i, j = np.nan_to_num(v).astype(np.intp), np.nan_to_num(u).astype(np.intp)
        i2, j2 = np.minimum(i + 1, values.shape[0] - 1), np.minimum(j + 1, values.shape[1] - 1)
        fu, fv = u - j, v - i
        upper = values[i, j] * (1 - fu) + values[i, j2] * fu
        lower = values[i2, j] * (1 - fu) + values[i2, j2] * fu
        return np.where(inside, upper * (1 - fv) + lower * fv, self.height)

    def coverage(self, lon: Floats, lat: Floats) -> float:
        """Share of the points that the DEM has a height for; 0 without one."""
        if self.dem is None:
            return 0.0
        known = Terrain(self.dem, np.nan).heights(lon, lat)
        return float(np.isfinite(known).mean())

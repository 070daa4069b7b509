"""Pictures that goldens of images are made of."""

import numpy as np


def picture(height, width, seed=8):
    """Smooth colours, edges and noise, [height, width, 3] u8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 120 * np.sin(x / 17), 255 * ((x // 10 + y // 10) % 2), 255 * y / height]
    noise = rng.normal(0, 12, (height, width, 3))
    return np.clip(np.stack(planes, axis=-1) + noise, 0, 255).astype(np.uint8)

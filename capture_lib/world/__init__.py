"""The rendered stand-in for Product1M: a shop world drawn on the spot, with known truth.

Product1M's photos come from shop servers and many are gone, so the default catalog is drawn. Everything follows
from the settings' seed, whatever the number of workers. This is the world's only door; behind it are

- what is shown and said: `products`, `captions`, `planning`;
- what a product looks like: `packaging` (forms, colours), `labels` (printing), `drawing` (light);
- photos: `layouts` (where products stand), `textures` and `backdrops`, `promotion` (stickers), `staging`;
- `building`: a folder of photos, and its truth.
"""

from capture_lib.world.building import boxes_of, build, on_plain_background, scenes_of, settings_of, true_mask
from capture_lib.world.captions import write_caption
from capture_lib.world.drawing import draw_product
from capture_lib.world.planning import SIZES, Sample, WorldSettings, plan, products_of, shown_products
from capture_lib.world.products import BRANDS, KINDS, Product, as_one, siblings
from capture_lib.world.staging import take_photo

__all__ = [
    "BRANDS", "KINDS", "SIZES", "Product", "Sample", "WorldSettings", "as_one", "boxes_of", "build", "draw_product",
    "on_plain_background", "plan", "products_of", "scenes_of", "settings_of", "shown_products", "siblings",
    "take_photo", "true_mask", "write_caption",
]

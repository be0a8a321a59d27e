"""The rendered stand-in for Product1M: a shop world drawn on the spot, with known truth. This is its only door.

Product1M's photos come from shop servers and many are gone, so the default catalog is drawn. Everything follows
from the settings' seed. Behind the door: what is shown and said (`products`, `captions`, `planning`), what a product
looks like (`packaging`, `labels`, `drawing`), photos (`layouts`, `textures`, `backdrops`, `promotion`, `staging`),
and a folder of photos with its truth (`building`).
"""

from capture_lib.world.building import boxes_of, build, on_plain_background, scenes_of, settings_of, true_mask
from capture_lib.world.captions import write_caption
from capture_lib.world.drawing import draw_product
from capture_lib.world.planning import SIZES, Sample, WorldSettings, plan, products_of, shown_products
from capture_lib.world.products import BRANDS, KINDS, Product, as_one, common_traits
from capture_lib.world.staging import take_photo

__all__ = [
    "BRANDS", "KINDS", "SIZES", "Product", "Sample", "WorldSettings", "as_one", "boxes_of", "build", "common_traits",
    "draw_product", "on_plain_background", "plan", "products_of", "scenes_of", "settings_of", "shown_products",
    "take_photo", "true_mask", "write_caption",
]

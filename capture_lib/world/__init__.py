"""The rendered stand-in for Product1M: a shop world drawn on the spot, with known truth. This is its only door.

Product1M's photos come from shop servers and many are gone, so the default catalog is drawn, all from the settings'
seed. Behind the door: what is shown and said (`products`, `captions`, `planning`), what a product looks like
(`packaging`, `labels`, `drawing`), photos (`layouts` to `staging`), and a folder of photos (`building`).
"""

from capture_lib.world.building import boxes_of, build, redraw, scenes_of, settings_of
from capture_lib.world.captions import write_caption
from capture_lib.world.drawing import draw_product
from capture_lib.world.planning import SIZES, WorldSettings, plan, products_of
from capture_lib.world.products import BRANDS, KINDS, Product
from capture_lib.world.staging import take_photo

__all__ = ["BRANDS", "KINDS", "SIZES", "Product", "WorldSettings", "boxes_of", "build", "draw_product", "plan",
           "products_of", "redraw", "scenes_of", "settings_of", "take_photo", "write_caption"]

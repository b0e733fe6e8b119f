"Hands the metadata of settings.ini to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="], interpolation=None)
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
s = config["DEFAULT"]
extras = {k.removesuffix("_requirements"): s[k].split() for k in s if k.endswith("_requirements")}

setup(
    name=s["lib_name"], version=s["version"], description=s["description"], author=s["author"],
    keywords=s["keywords"].split(), license=s["license"], python_requires=">=" + s["min_python"],
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=[s["lib_name"], s["lib_name"] + ".*"]), package_data={s["lib_name"]: ["assets/*"]},
    install_requires=s["requirements"].split(), extras_require=extras,
    entry_points={"console_scripts": s["console_scripts"].split()},
)

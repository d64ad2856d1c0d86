from setuptools import find_namespace_packages, setup

# The rest is in pyproject.toml, where nothing can be added to the packages that are found: here
# folders of the checkout that lie inside the package where it is installed.
SHIPPED = ["cpo_ds.ds_configs", "cpo_ds.hostfiles", "cpo_ds.recipes"]

setup(packages=find_namespace_packages(include=["cpo_ds*"]) + SHIPPED)

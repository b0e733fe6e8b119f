"""The names of the front door, for notebooks: `from elite112m.all import *`."""

from elite112m import *  # noqa: F403
from elite112m import __all__  # noqa: F401

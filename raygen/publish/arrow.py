"""PyArrow's compute functions. They are made when it is imported, so that type checkers do not see them."""

from typing import Any

import pyarrow.compute

pc: Any = pyarrow.compute

"""From a trial's tables to one page that opens from disk and loads nothing.

Text from the data is escaped by the templates; numbers for the plots travel as JSON that no HTML
parser can leave; and a content security policy names the page's three scripts by hash, so that
nothing else on it can run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_placebo.lazy import pandas as pandas
from sae_placebo.report.sections import SECTIONS, Section, View
from sae_placebo.report.tables import Tables, read_tables
from sae_placebo.store import write_text as write_text

_HERE = Path(__file__).parent
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}

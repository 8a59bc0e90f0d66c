"""A hook of MkDocs: links of the pages to files of the repository, which are not on the site, become the files' names.

So the same page works in the repository and on the site, and a link to a file that does not exist fails here too.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page without links that leave docs/. Raises PluginError if one leads nowhere."""

    def name_file(link: re.Match[str]) -> str:
        if not (ROOT / link[2]).exists():
            raise PluginError(f"docs/{page.file.src_uri}: {link[0]} leads to no file")
        return link[1] if "`" in link[1] else f"`{link[1]}`"

    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)\)", name_file, markdown)

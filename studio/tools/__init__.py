"""Tools a model may use: what each is called, what it takes, and how it is used. Nothing here evaluates Python."""

from studio.tools.tool import Tool as Tool
from studio.tools.tool import ToolError as ToolError
from studio.tools.toolbox import available as available
from studio.tools.toolbox import listed as listed

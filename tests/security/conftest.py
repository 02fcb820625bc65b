"""The command line in this process, as in the tests of the command line."""

from tests.command_line.conftest import folder as folder
from tests.command_line.conftest import train as train
from tests.command_line.conftest import trained as trained

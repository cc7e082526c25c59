"""`python -m penstock`: the console command, also from a bare clone."""

from penstock.cli import command

command()

"""`vssl demo`."""

import click


@click.command()
def demo():
    """Demo."""
